"""`python -m embedserve tune`: measures a model in process under many settings and recommends flags.

The command uses the registry as any embedding service does. The package knows no transport: REST and gRPC add a cost to
each request.
"""
