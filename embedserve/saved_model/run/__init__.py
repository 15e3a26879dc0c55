"""How a signature runs: as a function or in a graph session, with deadlines."""
