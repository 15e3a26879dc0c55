"""Answers of TensorFlow itself: by `tf.saved_model.load` and a call of the signature, or by a TF1 session.

The module uses neither servables nor batching of this package, so that the two kinds of answers are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.errors import LoadError, ServingError
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature

__all__ = ["PlainModel"]


class PlainModel:
    """A version as loaded by TensorFlow, from construction to `close`; methods block.

    Args:
        path: Version directory.
        tags: Tag set of the MetaGraph.

    Raises:
        LoadError: TensorFlow loads the version in neither way.
    """

    def __init__(self, path: Path, tags: Iterable[str]) -> None:
        from embedserve.saved_model.files.meta_graph import has_object_graph, read_meta_graph, read_signatures
        from embedserve.saved_model.judge.free_batch import declared_rows

        meta_graph = read_meta_graph(path, tags)
        self._declared = {name: declared_rows(stored) for name, stored in read_signatures(meta_graph).items()}
        ways: list[type[_Functions | _Session]] = (
            [_Session] if not has_object_graph(meta_graph) else [_Functions, _Session]
        )
        failures = []
        for way in ways:
            try:
                self._way: _Functions | _Session = way(path, tags)
            except Exception as error:
                failures.append(f"{way.words}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            else:
                return
        raise LoadError(f"TensorFlow cannot load {path} ({'; '.join(failures)})")

    def answer(self, signature: Signature, inputs: Tensors) -> dict[str, Array]:
        """A signature's answer to the bound inputs of a single request.

        A signature may declare a fixed number of rows but be served with any number. TensorFlow is then asked with the
        declared number: the request's rows are repeated, and the answers to the repetitions are dropped.

        Raises:
            ServingError: TensorFlow's error.
        """
        import tensorflow as tf

        declared = self._declared.get(signature.name)
        rows = min((len(array) if array.ndim else 0 for array in inputs.values()), default=0)
        filled = inputs
        if declared is not None and 0 < rows < declared:
            filled = {alias: array[np.arange(declared) % rows] for alias, array in inputs.items()}
        try:
            found = self._way.answer(signature, filled)
            return found if filled is inputs else {alias: array[:rows] for alias, array in found.items()}
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise ServingError(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """Drop the model."""
        self._way.close()


class _Functions:
    words = "tf.saved_model.load"

    def __init__(self, path: Path, tags: Iterable[str]) -> None:
        import tensorflow as tf

        self._loaded: Any = tf.saved_model.load(str(path), tags=sorted(tags))
        self.close: Callable[[], None] = lambda: None

    def answer(self, signature: Signature, inputs: Tensors) -> dict[str, Array]:
        import tensorflow as tf

        given = {
            alias: tf.constant(array, tf.string if array.dtype.hasobject else None, shape=array.shape)
            for alias, array in inputs.items()
        }
        found: dict[str, Any] = {}
        for alias, value in self._loaded.signatures[signature.name](**given).items():
            composite = signature.composites.get(alias)
            names = [alias] if composite is None else [name for _, name in composite.parts]
            found |= zip(names, tf.nest.flatten(value, expand_composites=True), strict=False)
        return {
            alias: np.asarray(found[alias].numpy(), object if spec.dtype.numpy.hasobject else None)
            for alias, spec in signature.outputs.items()
        }


class _Session:
    words = "a session"

    def __init__(self, path: Path, tags: Iterable[str]) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        self._session = v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            v1.saved_model.loader.load(self._session, sorted(tags), str(path))
        self.close: Callable[[], None] = self._session.close

    def answer(self, signature: Signature, inputs: Tensors) -> dict[str, Array]:
        fetched = {alias: spec.tensor_name for alias, spec in signature.outputs.items()}
        fed = {signature.inputs[alias].tensor_name: array for alias, array in inputs.items()}
        found = self._session.run(fetched, fed)
        return {
            alias: np.asarray(value, object if signature.outputs[alias].dtype.numpy.hasobject else None)
            for alias, value in found.items()
        }
