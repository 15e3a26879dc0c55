"""Concurrent requests of one loaded version and signature share a run; below the registry, so never across versions."""
