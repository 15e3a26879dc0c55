"""What leaves the event loop for a thread: a bound for each kind of work.

Below its bound, work holds the loop up for half a millisecond or less (measured on one core of a small server), and a
change of threads would cost more than the work. Knows no format: adapters measure the size.
"""

from __future__ import annotations

__all__ = [
    "JSON_BODY_BYTES",
    "JSON_OUTPUT_BYTES",
    "JSON_RESULTS",
    "JSON_STRING_BYTES",
    "MESSAGE_BYTES",
    "MESSAGE_COPY_BYTES",
    "MESSAGE_RESULTS",
    "ZIPPED_BYTES",
    "ZIP_FIRST_STEP",
    "ZIP_STEP",
]

JSON_BODY_BYTES = 64 * 1024
"""Bytes of a JSON body to be read, or of examples to be put together from one."""
JSON_OUTPUT_BYTES = 32 * 1024
"""Bytes of arrays to be written as JSON."""
JSON_STRING_BYTES = 64
"""Bytes counted for a string to be written as JSON: the cost of writing, not numpy's pointer of 8 bytes."""
JSON_RESULTS = 500
"""Results of a classifier or regressor to be written as JSON."""

MESSAGE_BYTES = 256 * 1024
"""Bytes of a protobuf message to be parsed or built."""
MESSAGE_COPY_BYTES = 16 * MESSAGE_BYTES
"""Bytes of arrays that a message takes over or gives as they are: such values cost a copy only."""
MESSAGE_RESULTS = MESSAGE_BYTES // 50
"""Results to be written as messages: a `Class` or `Regression` costs as much as reading 50 bytes."""

ZIPPED_BYTES = 16 * 1024
"""Bytes to be compressed, or compressed bytes to be decompressed."""
ZIP_FIRST_STEP = 64 * 1024
"""Decompressed bytes of the only step on the loop."""
ZIP_STEP = 4 * 1024 * 1024
"""Decompressed bytes of a step in a thread; limits are checked between steps."""
