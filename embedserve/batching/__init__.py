"""Concurrent requests of a loaded version's signature share a run; the registry stands above, so versions never mix."""
