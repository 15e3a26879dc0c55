"""What is decided about a signature at its load: may requests share a run, which shapes may reach its kernels."""
