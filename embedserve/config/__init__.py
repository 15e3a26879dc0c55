"""Every option of embedserve, a row for each. Flags, keywords for type checkers and the pages' tables follow the rows.

Durations are float seconds; `batch_timeout_micros` keeps the name and unit of TensorFlow Serving's files.
"""

from __future__ import annotations

from embedserve.config.keywords import ModelOptions, RegistryKeywords
from embedserve.config.location import MAX_NAME, Location, absolute, location, name_problem
from embedserve.config.model import ModelConfig, ModelLike, model_configs
from embedserve.config.registry import RegistryOptions
from embedserve.config.row import near, validated
from embedserve.config.values import (
    AbsentVersions,
    Access,
    AllVersions,
    Batching,
    BatchingOptions,
    Clients,
    FreeBatch,
    LatestVersions,
    LoggingOptions,
    Optimize,
    RetryPolicy,
    SpecificVersions,
    VersionPolicy,
)

__all__ = [
    "MAX_NAME",
    "AbsentVersions",
    "Access",
    "AllVersions",
    "Batching",
    "BatchingOptions",
    "Clients",
    "FreeBatch",
    "LatestVersions",
    "Location",
    "LoggingOptions",
    "ModelConfig",
    "ModelLike",
    "ModelOptions",
    "Optimize",
    "RegistryKeywords",
    "RegistryOptions",
    "RetryPolicy",
    "SpecificVersions",
    "VersionPolicy",
    "absolute",
    "location",
    "model_configs",
    "name_problem",
    "near",
    "validated",
]
