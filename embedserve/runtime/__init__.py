"""From entering a registry to leaving: the objects of an entry, the end of a start, and changes on demand."""
