"""TensorFlow Serving's numbers and words that several parts of the package keep."""

from __future__ import annotations

__all__ = ["DEFAULT_METRICS_PATH", "MAX_VERSION", "MAX_WARMUP_RECORDS", "TIMED_OUT"]

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
"""The path of the metrics page without a monitoring file (`server_main`)."""
MAX_VERSION = 2**63 - 1
"""Largest version number, an int64."""
MAX_WARMUP_RECORDS = 1000
"""Most recorded requests of a version (`saved_model_warmup_util.cc`)."""
TIMED_OUT = "Timed out waiting for notification"
"""TensorFlow's words for a missed deadline; clients look for the words."""
