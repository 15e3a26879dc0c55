"""Logs a sample of the answered requests as TFRecord files of `PredictionLog`s (TF Serving: request_logger.cc).

The runtime owns the logs, adapters hand over requests with their answers, a thread writes. The files are warm-up files:
`python -m embedserve.request_log to-warmup LOG... --output FILE` picks records for a version.
"""

from embedserve.request_log.logs import ModelLog, RequestLogs

__all__ = ["ModelLog", "RequestLogs"]
