"""From entering a registry to leaving it: what exists meanwhile, how a start ends, and changes on demand."""
