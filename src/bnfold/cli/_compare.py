"""Run the original and the folded model on the same inputs and measure how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.errors import ExampleInputError, FoldFailedError

if TYPE_CHECKING:
    import torch

# The largest difference that rounding explains, relative to the largest value of the output.
# A fold reorders the same arithmetic: each dtype gets some 10^3 to 10^6 of its rounding steps
# (2^-52, 2^-23, 2^-10, 2^-7), because a deep network adds them up; a wrong fold is off by far more.
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
# Integers come from comparisons (an argmax), which one rounding may tip over: the share that may.
_INTEGER_TOLERANCE = 5e-2


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two runs are apart."""

    absolute: float
    """Largest absolute difference of an output."""
    relative: float
    """Largest difference relative to the largest value of the same output."""
    tolerance: float
    """What `relative` may be."""

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return {
            "absolute": self.absolute,
            "relative": self.relative,
            "tolerance": self.tolerance,
        }

    def __str__(self) -> str:
        return f"largest difference {self.absolute:.2g} absolute, {self.relative:.2g} relative"


def check_equal(
    name: str,
    original: Callable[..., Any],
    folded: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dtypes: frozenset[torch.dtype],
) -> Difference:
    """Compare the outputs; `dtypes` are those of the weights, which the tolerance follows.

    Raises ExampleInputError if the original raises, FoldFailedError if the folded one does or if
    the outputs are plainly unequal.
    """
    try:
        expected = _run(original, args, kwargs)
    except Exception as error:
        raise ExampleInputError(name, error) from error
    try:
        actual = _run(folded, args, kwargs)
    except Exception as error:
        raise FoldFailedError(
            f"the folded {name} raised {type(error).__name__} on the inputs that the original"
            f" accepts: {error}".rstrip(".")
        ) from error
    if len(expected) != len(actual):
        raise FoldFailedError(
            f"the folded {name} returns {len(actual)} tensors, the original {len(expected)}"
        )
    differences = [_difference(name, a, b, dtypes) for a, b in zip(expected, actual, strict=True)]
    return max(
        differences, key=lambda d: d.relative / d.tolerance, default=Difference(0.0, 0.0, 0.0)
    )


def _run(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[torch.Tensor]:
    import torch
    from torch.utils import _pytree

    args, kwargs = _pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, (args, kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same randomness for both, if there is any
        leaves = _pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _difference(
    name: str, expected: torch.Tensor, actual: torch.Tensor, dtypes: frozenset[torch.dtype]
) -> Difference:
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        raise FoldFailedError(
            f"an output of the folded {name} is {tuple(actual.shape)} {actual.dtype},"
            f" of the original {tuple(expected.shape)} {expected.dtype}"
        )
    is_rounded = expected.is_floating_point() or expected.is_complex()
    gap, scale = _gap(expected, actual)
    if is_rounded:
        tolerance = _tolerance(dtypes | {expected.dtype})
        relative = gap / scale if scale else float(gap > 0)
    else:
        tolerance = _INTEGER_TOLERANCE
        relative = float((expected != actual).double().mean()) if expected.numel() else 0.0
    if not relative <= tolerance:
        raise FoldFailedError(
            f"the folded {name} differs from the original by {gap:.2g} absolute,"
            f" {relative:.2g} relative (rounding explains {tolerance:.0e}); nothing was written"
        )
    return Difference(gap, relative, tolerance)


def _gap(expected: torch.Tensor, actual: torch.Tensor) -> tuple[float, float]:
    """Largest difference, and largest value. NaN and infinity are equal to themselves only."""
    import torch

    if expected.is_complex():
        expected, actual = torch.view_as_real(expected), torch.view_as_real(actual)
    a, b = expected.double().flatten(), actual.double().flatten()
    same = (a == b) | (a.isnan() & b.isnan())
    gaps = torch.where(same, 0.0, a - b).abs()
    if not gaps.numel():
        return 0.0, 0.0
    finite = a[a.isfinite()].abs()
    return float(gaps.max()), float(finite.max()) if finite.numel() else 0.0


def _tolerance(dtypes: frozenset[torch.dtype]) -> float:
    names = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    return max((_TOLERANCE[name] for name in names if name in _TOLERANCE), default=1e-3)
