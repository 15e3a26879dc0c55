"""The benchmark suite: servers beside each other on one core, the load on another; run by `benchmarks.__main__`."""
