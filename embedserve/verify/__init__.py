"""`python -m embedserve verify`: answers the same requests by plain TensorFlow and by embedserve in several ways.

The command uses the registry as any embedding service does, so requests share runs as in a server. The package knows no
transport.
"""
