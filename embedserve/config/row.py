"""The row of an option: type, default, bounds, meaning, and the way from the command line to the option.

A row is a field of an `Options` class. The field's description is the text of the class's documentation and, up to the
first full stop, of `--help`. The module knows no option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import cleandoc
from textwrap import fill
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from embedserve.errors import Code, ConfigError

__all__ = [
    "Flag",
    "FlagValue",
    "Kind",
    "Options",
    "PythonOnly",
    "Reach",
    "SetBy",
    "comma_separated",
    "near",
    "validated",
]

T = TypeVar("T", bound=BaseModel)

FlagValue: TypeAlias = bool | int | float | str
Kind: TypeAlias = Literal["bool", "int32", "int64", "float", "string"]


@dataclass(frozen=True)
class Flag:
    """A command-line flag. On an option's row, each empty attribute comes from the row.

    Attributes:
        name: Name without the dashes; else the option's name.
        kind: Type of the value, in TensorFlow Serving's words; else the kind that fits the option's type.
        default: Value of an absent flag; else the option's default.
        help: A sentence for `--help`; else the first sentence of the option's description.
        support: `same` acts as in TensorFlow Serving; `differs` reaches the same end in another way; `ignored` is
            accepted with a warning; `own` is embedserve's.
        note: The difference, or the reason for ignoring the flag.
        repeated: Whether each occurrence adds to a comma-separated list; otherwise the last occurrence counts.
        unset: The meaning of the flag's default, where that default stands for the option's own; the end of `help`.
        to: From the flag's value to the option's; None for the same value.
    """

    name: str = ""
    kind: Kind | None = None
    default: FlagValue | None = None
    help: str = ""
    support: Literal["same", "differs", "ignored", "own"] = "same"
    note: str = ""
    repeated: bool = False
    unset: str = ""
    to: Callable[[Any], object] | None = None


class SetBy:
    """The command line sets the option by several flags, or by a file named in a flag.

    Args:
        flags: The flags; a name stands for a flag with a row elsewhere.
    """

    def __init__(self, *flags: Flag | str) -> None:
        self.flags = flags

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the flags."""
        return tuple(flag if isinstance(flag, str) else flag.name for flag in self.flags)


@dataclass(frozen=True)
class PythonOnly:
    """No flag sets the option, for the given reason."""

    why: str


Reach: TypeAlias = Flag | SetBy | PythonOnly


def comma_separated(text: str) -> tuple[str, ...]:
    """The non-empty parts of a list flag's value."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Options(BaseModel):
    """Options as a frozen model. A bad value or an unknown name is a ConfigError with the name of each option."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    reached_by: ClassVar[Reach | None] = None
    """The way from the command line to fields whose rows name no way."""

    if not TYPE_CHECKING:  # A signature here would hide the fields' own from type checkers.

        def __init__(self, **options: object) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise _config_error(type(self), error) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        """Document the fields by their rows."""
        rows = [
            fill(f"{name}: {row.description}", 120, initial_indent="    ", subsequent_indent="        ")
            for name, row in cls.model_fields.items()
            if row.description
        ]
        if rows and cls.__doc__:
            cls.__doc__ = "\n".join([cleandoc(cls.__doc__), "", "Attributes:", *rows])

    @classmethod
    def reach(cls, name: str) -> Reach | None:
        """Return the way from the command line to a field."""
        found = [each for each in cls.model_fields[name].metadata if isinstance(each, Reach)]
        return found[0] if found else cls.reached_by


def near(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'batching'?` for a name close to a known name, else an empty string."""
    lower = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), lower, n=1)
    return f", did you mean {lower[found[0]]!r}?" if found else ""


def validated(cls: type[T], values: Mapping[str, object]) -> T:
    """Build an options model, with pydantic's findings as a single ConfigError with the name of each option.

    Raises:
        ConfigError: An unknown option or a bad value.
    """
    try:
        return cls(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise _config_error(cls, error) from None


def _config_error(cls: type[BaseModel], error: ValidationError) -> ConfigError:
    """Turn pydantic's findings into a single error with the name of each option."""
    findings, code = [], Code.INVALID_ARGUMENT
    for item in error.errors(include_url=False):
        place = ".".join(map(str, item["loc"])) or cls.__name__
        if item["type"] == "extra_forbidden":
            findings.append(f"{place}: {cls.__name__} has no such option{_hint(cls, place)}")
        else:
            findings.append(f"{place}: {item['msg'].removeprefix('Value error, ')}")
            if isinstance(cause := item.get("ctx", {}).get("error"), ConfigError):
                code = cause.code
    return ConfigError("; ".join(findings), code=code)


def _hint(cls: type[BaseModel], name: str) -> str:
    # A model's options come before a registry's, as the more likely place.
    owners = sorted(Options.__subclasses__(), key=lambda each: each.__name__ != "ModelConfig")
    owner = next((each for each in owners if name in each.model_fields), None)
    return near(name, cls.model_fields) if owner is None else f"; {owner.__name__} has it"
