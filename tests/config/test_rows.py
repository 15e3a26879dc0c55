"""One row for an option: flag, help, documentation, keywords and tables follow the row."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Annotated

import pytest
from pydantic import Field

import embedserve.config.values as values
from embedserve.config import Access, ModelConfig, ModelOptions, RegistryKeywords, RegistryOptions
from embedserve.config.row import Flag, Options, PythonOnly, SetBy
from embedserve.server.flags import FLAGS, completed, option_values, parse
from scripts import generate


def classes() -> Iterator[type[Options]]:
    yield from (ModelConfig, RegistryOptions)
    for each in vars(values).values():
        if inspect.isclass(each) and issubclass(each, Options) and each is not Options:
            yield each


FIELDS = [(each, name) for each in classes() for name in each.model_fields]


def test_the_classes_of_options_are_found() -> None:
    assert {each for each, _ in FIELDS} >= {Access, ModelConfig, RegistryOptions}
    assert len(FIELDS) > 80


@pytest.mark.parametrize(("options", "name"), FIELDS, ids=[f"{each.__name__}.{name}" for each, name in FIELDS])
def test_each_option_is_set_by_a_flag_or_says_why_python_alone_sets_it(options: type[Options], name: str) -> None:
    reach = options.reach(name)
    if reach is None and options is ModelConfig:
        reach = RegistryOptions.reach(name)  # The flag sets the default of all models.
    match reach:
        case Flag(name=other):
            assert (other or name) in FLAGS
        case SetBy(names=names):
            assert set(names) <= set(FLAGS)
        case PythonOnly(why=why):
            assert why
        case _:
            pytest.fail("the row names no flag, and no reason for none")


def test_the_options_without_a_flag_are_these() -> None:
    only = {f"{each.__name__}.{name}" for each, name in FIELDS if isinstance(each.reach(name), PythonOnly)}
    assert only == {"BatchingOptions.oversize", "ModelConfig.input_ranks", "ModelConfig.storage_options"}


def test_the_generated_files_follow_the_rows() -> None:
    assert generate.KEYWORDS.read_text() == generate.keywords(), "run: python -m scripts.generate"
    page = generate.FLAG_TABLES.read_text()
    assert page == generate.flag_tables(page), "run: python -m scripts.generate"


@pytest.mark.parametrize(("keywords", "options"), [(ModelOptions, ModelConfig), (RegistryKeywords, RegistryOptions)])
def test_the_keywords_are_the_fields_of_the_options(keywords: type, options: type[Options]) -> None:
    assert list(keywords.__annotations__) == list(options.model_fields)
    # As text: postponed annotations are not looked into.
    required = {name for name, kind in keywords.__annotations__.items() if "Required[" in str(kind)}
    assert required == {name for name, row in options.model_fields.items() if row.is_required()}


class Sample(Options):
    """Options of a test."""

    speed: Annotated[float, Flag()] = Field(default=2.5, description="Metres a second. More is in the documentation.")
    bound: Annotated[int | None, Flag("limit", "int64", 0, unset="0 for none")] = Field(
        default=None, description="Largest number."
    )


def samples() -> Iterator[Flag]:
    for name, row in Sample.model_fields.items():
        reach = Sample.reach(name)
        assert isinstance(reach, Flag)
        yield completed(reach, name, row)


def test_a_flag_takes_from_the_row_whatever_the_flag_leaves_open() -> None:
    speed, bound = samples()
    assert (speed.name, speed.kind, speed.default, speed.help) == ("speed", "float", 2.5, "Metres a second.")
    assert (bound.name, bound.kind, bound.default, bound.help) == ("limit", "int64", 0, "Largest number; 0 for none.")


def test_help_of_a_class_describes_each_row() -> None:
    assert "    speed: Metres a second. More is in the documentation." in (inspect.getdoc(Sample) or "")
    for name in RegistryOptions.model_fields:
        assert f"    {name}: " in (inspect.getdoc(RegistryOptions) or ""), name


def test_a_flag_alone_sets_its_option_and_an_absent_flag_leaves_the_default() -> None:
    given = option_values(
        parse(["--max_stuck_runs=3", "--op_libraries=a.so, b.so", "--remote_poll_wait_seconds=9", "--free_batch=true"])
    )
    assert given["max_stuck_runs"] == 3
    assert given["op_libraries"] == ("a.so", "b.so")
    assert given["remote_poll_interval"] == 9.0
    assert given["free_batch"] == "true"
    absent = option_values(parse([]))
    assert not {"max_stuck_runs", "remote_poll_interval", "remote_cache_dir", "start_requires"} & set(absent)
    assert absent["start_timeout"] == math.inf
    assert absent["gc_freeze"] is True


def test_a_flag_with_the_options_own_meaning_has_the_options_default() -> None:
    # The server waits for models without a bound, and hides the objects of its imports from the collector.
    differ = {"start_timeout", "gc_freeze"}
    ours = {**{name: row.default for name, row in RegistryOptions.model_fields.items()}, "poll_interval": 1}
    given = option_values(parse([]))
    assert {name for name, value in given.items() if value != ours[name]} == differ
