"""Analysis of each signature at load: may requests share a run, and which shapes may reach the kernels?"""
