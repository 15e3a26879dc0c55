"""The standalone server with REST and gRPC on a single port, through Envoy and the package pyvoy (`--server=pyvoy`).

`server` is the process started by users. `application` runs inside the spawned Envoy.
"""
