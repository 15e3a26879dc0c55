"""Faster copies of a loaded version: frozen, folded, or compiled by XLA."""
