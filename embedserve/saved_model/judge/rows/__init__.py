"""Row independence, read from a graph: may requests of a signature share a run? `walk` follows it, `table` knows it."""
