"""Threads, event loops, bytes in flight, and the CPUs and memory of the container. The package knows no model."""
