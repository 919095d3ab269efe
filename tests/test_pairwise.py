"""Every case is there, every pair meets, and there are few."""

from __future__ import annotations

from tests.pairwise import pairwise


def test_every_trait_meets_every_option() -> None:
    cases = [(a, b) for a in "abcde" for b in range(3)]
    found = pairwise(cases, "xy", lambda case: case)
    assert {case for case, _ in found} == set(cases)
    assert {(trait, option) for case, option in found for trait in case} == {
        (trait, option) for trait in (*"abcde", 0, 1, 2) for option in "xy"
    }
    assert len(found) == len(cases)


def test_a_trait_that_one_case_alone_has_meets_all() -> None:
    found = pairwise([1, 2, 3, 4], "xyz", lambda case: {case >= 4, 0})
    assert [option for case, option in found if case == 4] == sorted("xyz")
    assert len(found) == 6


def test_without_traits_each_case_has_one() -> None:
    assert pairwise([1, 2, 3], "xy", lambda case: ()) == [(1, "x"), (2, "y"), (3, "x")]
