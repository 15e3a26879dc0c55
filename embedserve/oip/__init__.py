"""The Open Inference Protocol (KServe V2) without a transport: datatypes, requests, documents. Decides nothing.

REST and gRPC translate bodies and messages to the values of this room, and ask the registry as for every protocol.
"""
