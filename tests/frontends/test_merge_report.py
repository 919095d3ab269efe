"""What several folds of one network did, told as one."""

from __future__ import annotations

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from bnfold.frontends.merge_report import passed_on, told_in_turn
from bnfold.outcomes import Item, Kept, Merged, Removed
from bnfold.report import FoldReport

NAMES = ("a", "one", "b", "two", "c", "three", "d")
GRAPH = g.Graph([], [g.Op(name, g.Opaque(), (), ()) for name in NAMES])


def removed(name: str, *into: str) -> Item:
    return Item(name, "BatchNorm", 4, 1, Removed(into))


def kept(name: str) -> Item:
    return Item(name, "BatchNorm", 4, 1, Kept(Reason.ZERO_GAMMA, None))


def told(*reports: FoldReport) -> FoldReport:
    return told_in_turn(GRAPH, reports)


def into(report: FoldReport) -> dict[str, tuple[str, ...]]:
    return {
        item.name: item.outcome.into for item in report.items if isinstance(item.outcome, Removed)
    }


def test_one_fold_is_told_as_it_is() -> None:
    report = FoldReport((removed("one", "a"),))
    assert told(report) is report


def test_a_step_that_stayed_at_first() -> None:
    report = told(
        FoldReport((removed("two", "b"), kept("one"))), FoldReport((removed("one", "a"),))
    )
    assert [item.name for item in report.items] == ["one", "two"]
    assert into(report) == {"one": ("a",), "two": ("b",)}


def test_a_step_that_stays() -> None:
    report = told(FoldReport((removed("one", "a"), kept("two"))), FoldReport((kept("two"),)))
    assert [(item.name, item.is_removed) for item in report.items] == [
        ("one", True),
        ("two", False),
    ]


def test_what_a_step_went_into_goes_later() -> None:
    report = told(
        FoldReport((removed("one", "two", "a"), kept("two"), kept("three"))),
        FoldReport((removed("two", "three"), kept("three"))),
        FoldReport((removed("three", "c", "d"),)),
    )
    assert into(report) == {"one": ("a", "c", "d"), "two": ("c", "d"), "three": ("c", "d")}


def test_what_a_step_went_into_is_merged_later() -> None:
    report = told(
        FoldReport((removed("one", "a"), removed("two", "b", "c"))),
        FoldReport((), merged=(Merged("d", "Conv", ("a", "c")),)),
    )
    assert into(report) == {"one": ("d",), "two": ("b", "d")}


def test_what_was_merged_is_merged_again() -> None:
    """The parts went into what is left at last, whichever op that is."""
    report = told(
        FoldReport((), merged=(Merged("a", "Conv", ("b", "one")), Merged("c", "Conv", ("two",)))),
        FoldReport((), merged=(Merged("d", "Conv", ("a", "c", "three")),)),
    )
    assert report.merged == (Merged("d", "Conv", ("a", "one", "b", "two", "c", "three")),)
    report = told(
        FoldReport((), merged=(Merged("a", "Conv", ("b",)),)),
        FoldReport((), merged=(Merged("a", "Conv", ("c", "d")),)),
    )
    assert report.merged == (Merged("a", "Conv", ("b", "c", "d")),)


def test_merges_apart_stay_apart() -> None:
    first, second = Merged("a", "Conv", ("b",)), Merged("c", "Conv", ("d",))
    assert told(FoldReport((), merged=(first,)), FoldReport((), merged=(second,))).merged == (
        first,
        second,
    )


def test_names_that_lead_in_a_circle() -> None:
    items = [removed("one", "two"), removed("two", "one")]
    assert passed_on(items, {"one": ("two",), "two": ("one",)}) == items
