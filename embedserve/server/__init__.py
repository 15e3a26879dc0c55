"""`python -m embedserve`: flags, configuration, ports, processes, and the drain at the end."""
