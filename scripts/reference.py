"""What the site's reference cannot read in the source: the methods that `blocking` makes."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Function

from embedserve.concurrency.owner_loop import TWIN


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
