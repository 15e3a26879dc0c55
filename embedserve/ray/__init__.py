"""A registry in every replica of a Ray Serve application: REST and gRPC through Serve's proxies, scaled by Serve.

`build_app` makes the application in Python, `app` from a Serve config file. Ray itself is imported in the calls.
"""

from embedserve.ray.application import app, build_app
from embedserve.ray.rpcs import add_services_to_server

__all__ = ["add_services_to_server", "app", "build_app"]
