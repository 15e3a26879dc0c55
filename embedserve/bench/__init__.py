"""`python -m embedserve bench`: measures one model in process under many settings and says which flags to serve it by.

Uses the registry as any embedding service does. Knows no transport: REST and gRPC add their own cost to each request.
"""
