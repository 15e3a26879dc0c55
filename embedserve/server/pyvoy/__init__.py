"""The standalone server with REST and gRPC on one port, through Envoy and the package pyvoy (`--server=pyvoy`).

`server` is the process that users start; `application` runs inside the Envoy that it spawns.
"""
