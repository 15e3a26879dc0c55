"""`python -m embedserve verify`: answers the same requests by plain TensorFlow and by embedserve in several ways.

Uses the registry as any embedding service does, so that requests share runs as they do in a server. Knows no transport.
"""
