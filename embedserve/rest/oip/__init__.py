"""The Open Inference Protocol (KServe V2) over REST: everything below `/v2`."""
