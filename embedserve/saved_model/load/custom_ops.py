"""Operations outside TensorFlow's own build: loads modules and libraries with operations, and names missing packages.

`preload` serves a coming load, `import_provider` and `advice` a load that failed.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import socket
import sys
import threading
from collections.abc import Iterable, Mapping

import tensorflow as tf

from embedserve.errors import Code, LoadError
from embedserve.saved_model.files.graph import Operations

__all__ = ["advice", "check_python_calls", "import_provider", "preload", "use_gpu_as_needed"]

logger = logging.getLogger("embedserve")

_UNREGISTERED = re.compile(r"Op type not registered '([^']+)'")

# Beginning of an op's name → (pip package, module that registers it).
_PROVIDERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("SimpleML",), "tensorflow-decision-forests", "tensorflow_decision_forests"),
    (("IO>",), "tensorflow-io", "tensorflow_io"),
    (("Addons>",), "tensorflow-addons", "tensorflow_addons"),
    (("TFRA>",), "tensorflow-recommenders-addons", "tensorflow_recommenders_addons"),
    (("Scann>",), "scann", "scann"),
    (("Horovod",), "horovod", "horovod.tensorflow"),
    (
        (
            *(
                "TFText>",
                "Sentencepiece",
                "Wordpiece",
                "FastWordpiece",
                "FastBert",
                "FastSentencepiece",
                "WhitespaceToken",
            ),
            *("UnicodeScript", "CaseFoldUTF8", "NormalizeUTF8", "RegexSplit", "SplitMerge", "SentenceFragments"),
            *("ConstrainedSequence", "MaxSpanningTree", "RougeL", "PhraseToken", "TokenizerFromLogits", "Utf8Binarize"),
            *("ByteSplit", "RoundRobin", "TextCharacter", "TrimmedLengths", "WhitespaceTokenizer"),
        ),
        "tensorflow-text",
        "tensorflow_text",
    ),
)

_lock = threading.Lock()
_loaded_libraries: set[str] = set()


def preload(modules: Iterable[str], libraries: Iterable[str]) -> None:
    """Import modules and load shared libraries that register ops; each only once in the process.

    Raises:
        LoadError: A module or library is missing or does not fit this TensorFlow.
    """
    with _lock:
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                raise LoadError(
                    f"preload_modules: cannot import {module!r}: {type(error).__name__}: {error}. Install the package "
                    f"that has it, in the version made for TensorFlow {tf.__version__}",
                    code=Code.FAILED_PRECONDITION,
                ) from error
        for library in libraries:
            if library in _loaded_libraries:
                continue
            try:
                tf.load_op_library(library)
            except Exception as error:
                raise LoadError(
                    f"op_libraries: cannot load {library!r}: {type(error).__name__}: {error}. It must be there and "
                    f"built for TensorFlow {tf.__version__}",
                    code=Code.FAILED_PRECONDITION,
                ) from error
            _loaded_libraries.add(library)


def use_gpu_as_needed() -> None:
    """Let TensorFlow take GPU memory on demand, not all at once; too late after the first use of the GPU."""
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            if not tf.config.experimental.get_memory_growth(gpu):
                tf.config.experimental.set_memory_growth(gpu, True)
        except (RuntimeError, ValueError) as error:
            logger.warning("memory growth cannot be turned on for %s: %s", gpu.name, error)


def check_python_calls(operations: Mapping[str, Operations]) -> None:
    """Refuse a model that would call a Python function, in TensorFlow Serving's words.

    TensorFlow's Python package registers these operations, so a load would succeed. A run would then fail, or call an
    unrelated function of the process with the same token.

    Args:
        operations: Effects of each part of the model, by the part's name in messages.

    Raises:
        LoadError: A part calls Python.
    """
    for part, found in operations.items():
        if found.calls_python is not None:
            raise LoadError(
                f"Op type not registered '{found.calls_python}' in binary running on {socket.gethostname()}. Make sure "
                f"the Op and Kernel are registered in the binary running in this process. The {part} calls a Python "
                "function through it, and a SavedModel does not hold that function: write it with TensorFlow "
                "operations in place of tf.py_function and tf.numpy_function, and export the model again",
                code=Code.NOT_FOUND,
            )


def import_provider(message: str) -> bool:
    """Import the module with the operation that a failed load misses; True if a second load may succeed.

    False if no known module has the operation, or if the module is missing or already imported. TensorFlow Serving's
    binary links the operations of TensorFlow Text and Decision Forests, so its flags name no module.
    """
    op, _, module = _provider(message)
    if op is None or module is None or module in sys.modules or importlib.util.find_spec(module) is None:
        return False
    logger.info("importing %s, which has the operation %r", module, op)
    preload([module], [])
    return True


def advice(message: str) -> str | None:
    """Advice for a load that failed with `message`; None unless the message names a missing operation."""
    op, package, module = _provider(message)
    if op is None:
        return None
    if package is not None:
        return (
            f"The operation {op!r} comes with the pip package {package}: install it and set "
            f"preload_modules=({module!r},), on the command line --preload_modules={module}"
        )
    return (
        f"TensorFlow {tf.__version__} has no operation {op!r}. Name the Python module that registers it in "
        "preload_modules (--preload_modules=MODULE), or the shared library in op_libraries (--op_libraries=FILE.so)"
    )


def _provider(message: str) -> tuple[str | None, str | None, str | None]:
    """The missing operation of a message, and the known package and module with the operation."""
    found = _UNREGISTERED.search(message)
    if found is None:
        return None, None, None
    op = found.group(1)
    for beginnings, package, module in _PROVIDERS:
        if op.startswith(beginnings):
            return op, package, module
    return op, None, None
