"""What the site's reference cannot read in the source: options' rows, and the methods that `blocking` makes."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Function

from embedserve.concurrency.owner_loop import TWIN
from embedserve.config.row import Options


class Rows(Extension):
    """Documents a class of options by its rows, as `help()` does."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        if cls.path.startswith("embedserve.config."):
            found = getattr(importlib.import_module(cls.module.path), cls.name)
            if issubclass(found, Options) and cls.docstring is not None:
                cls.docstring = Docstring(inspect.getdoc(found) or "", parent=cls, lineno=cls.docstring.lineno)


class Twins(Extension):
    """Shows `predict_sync = blocking(predict)` as a method with the parameters of `predict`."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        for name, member in list(cls.members.items()):
            if not isinstance(member, Attribute) or not str(member.value).startswith("blocking("):
                continue
            method = cls.members[name.removesuffix("_sync")]
            assert isinstance(method, Function)
            twin = Function(name, parameters=method.parameters, returns=method.returns, lineno=member.lineno)
            twin.docstring = Docstring(TWIN.format(method.name), parent=twin)
            cls.set_member(name, twin)
