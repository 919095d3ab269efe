"""What a dtype can hold, and which bounds of a clip are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnfold.core.limits import largest, read_bounds

LARGEST = {
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": 3.3895313892515355e38,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_bound_within_the_dtype_is_one(dtype):
    most = math.nextafter(LARGEST[dtype], 0.0)
    for bounds in ((-most, most), (0.0, 6.0), (-1.0, 0.0), (-6.0, most), (-most, 0.0)):
        assert read_bounds(*bounds, dtype) == bounds


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_bound_at_the_end_of_the_dtype_is_none(dtype):
    most = largest(dtype)
    assert most == LARGEST[dtype]
    assert read_bounds(-most, most, dtype) == (-math.inf, math.inf)
    assert read_bounds(-most, 6.0, dtype) == (-math.inf, 6.0)
    assert read_bounds(0.0, most, dtype) == (0.0, math.inf)
    assert read_bounds(-math.inf, math.inf, dtype) == (-math.inf, math.inf)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_bound_of_float32_behind_the_end_of_a_smaller_dtype_is_none(dtype):
    assert read_bounds(-LARGEST["float32"], 6.0, dtype) == (-math.inf, 6.0)


def test_a_bound_at_the_end_of_float32_is_one_in_float64():
    bounds = -LARGEST["float32"], 6.0
    assert read_bounds(*bounds, "float64") == bounds


def test_a_dtype_that_is_not_known_has_no_end():
    assert read_bounds(-1e300, 1e300, "") == (-1e300, 1e300)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_what_is_always_the_same_keeps_its_bound(end):
    """At the other end everything is clipped."""
    bound = end * LARGEST["float32"]
    assert bound in read_bounds(bound, bound, "float32")
