"""When a start is over, as a table of prospects, and what changes it afterwards: nothing."""

from __future__ import annotations

import pytest

from embedserve.runtime.starting import Outcome, Prospect, Requires, Start

S, C, T, H = Prospect.SERVED, Prospect.COMING, Prospect.TROUBLED, Prospect.HOPELESS


@pytest.mark.parametrize(
    ("prospects", "all_of_them", "any_of_them"),
    [
        ([S, S], Outcome.SERVING, Outcome.SERVING),
        ([S, C], Outcome.PENDING, Outcome.PENDING),
        ([S, T], Outcome.PENDING, Outcome.SERVING),
        ([S, H], Outcome.FAILED, Outcome.SERVING),
        ([S, T, H], Outcome.PENDING, Outcome.SERVING),
        ([S, C, H], Outcome.PENDING, Outcome.PENDING),
        ([T], Outcome.PENDING, Outcome.PENDING),
        ([T, H], Outcome.PENDING, Outcome.PENDING),
        ([H, H], Outcome.FAILED, Outcome.FAILED),
        ([C, H], Outcome.PENDING, Outcome.PENDING),
    ],
)
def test_where_a_start_is(prospects: list[Prospect], all_of_them: Outcome, any_of_them: Outcome) -> None:
    models = dict(zip("abc", prospects, strict=False))
    assert Start("all", discovers=True).look(models) is all_of_them
    assert Start("any", discovers=True).look(models) is any_of_them


def test_an_explicitly_empty_set_of_models_is_served_and_an_empty_root_is_not() -> None:
    assert Start("all", discovers=False).look({}) is Outcome.SERVING
    root = Start("any", discovers=True)
    assert root.look({}) is Outcome.EMPTY
    assert root.look({"a": C}) is Outcome.PENDING
    assert root.look({"a": S}) is Outcome.SERVING


@pytest.mark.parametrize("requires", ["all", "any"])
@pytest.mark.parametrize("later", [{}, {"a": T}, {"a": H}, {"a": S, "new": T}, {"a": C, "new": C}])
def test_what_happens_after_the_start_does_not_undo_it(requires: Requires, later: dict[str, Prospect]) -> None:
    start = Start(requires, discovers=True)
    start.look({"a": S})
    assert start.look(later) is Outcome.SERVING
    assert start.over


def test_a_model_counts_once_it_was_served_even_if_it_fails_before_the_others_have_come() -> None:
    start = Start("all", discovers=False)
    assert start.look({"a": S, "b": C}) is Outcome.PENDING
    assert start.look({"a": T, "b": C}) is Outcome.PENDING
    assert start.missing(["a", "b"]) == ["b"]
    assert start.look({"a": T, "b": S}) is Outcome.SERVING


def test_a_model_that_appears_during_the_start_does_not_hold_it_up() -> None:
    start = Start("all", discovers=True)
    assert start.look({"a": C}) is Outcome.PENDING
    assert start.look({"a": S, "new": T}) is Outcome.SERVING


def test_a_model_that_is_gone_is_not_waited_for() -> None:
    start = Start("all", discovers=False)
    assert start.look({"a": S, "b": T}) is Outcome.PENDING
    assert start.look({"a": S}) is Outcome.SERVING


def test_when_the_time_is_up_any_has_enough_with_one_and_all_has_not() -> None:
    for requires, enough in (("any", True), ("all", False)):
        start = Start(requires, discovers=False)  # type: ignore[arg-type]
        start.look({"a": S, "b": C})
        assert start.settle_for_less() is enough
        assert start.over is enough
    nothing = Start("any", discovers=False)
    nothing.look({"a": C})
    assert not nothing.settle_for_less()
