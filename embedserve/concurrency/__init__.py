"""Threads, event loops, what may be in flight, and the CPUs and memory of the container. Knows no model."""
