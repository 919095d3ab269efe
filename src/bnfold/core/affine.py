"""A per-channel affine map y = scale * x + shift, and where BatchNorm gets its own from.

    BatchNorm (Ioffe & Szegedy, arXiv 1502.03167) at inference, per channel:
        y = gamma * (x - mean) / sqrt(var + eps) + beta  =  a * x + b
        a = gamma / sqrt(var + eps)          b = beta - a * mean
        gamma = a * sqrt(var + eps)          beta = b + a * mean

All arithmetic is float64: weights are rounded once, when they are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def deviation_of(var: ArrayLike, eps: float) -> FloatArray:
    """sqrt(var + eps), (C,)"""
    result: FloatArray = np.sqrt(np.asarray(var, dtype=np.float64) + eps)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = scale * x + shift, elementwise; the two arrays have one shape."""

    scale: FloatArray
    """The factors; 0 is allowed and makes the channel a constant."""
    shift: FloatArray
    """The summands."""

    @classmethod
    def from_batchnorm(
        cls,
        mean: ArrayLike,
        var: ArrayLike,
        eps: float,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> Affine:
        """The map of a BatchNorm with running statistics, arrays of shape (C,).

        A missing gamma is 1, a missing beta 0. Unusable statistics give non-finite entries:
        ask `is_finite` before use.
        """
        mean64 = np.asarray(mean, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 1.0 / deviation_of(var, eps)
        if gamma is not None:
            scale = scale * np.asarray(gamma, dtype=np.float64)
        shift = -scale * mean64
        if beta is not None:
            shift = shift + np.asarray(beta, dtype=np.float64)
        return cls(scale, shift)

    def as_batchnorm(
        self, mean: FloatArray, deviation: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """The gamma and beta of a BatchNorm that is this map, with a `deviation_of` its own."""
        with np.errstate(invalid="ignore"):  # a deviation of inf, which makes a constant
            return self.scale * deviation, self.shift + self.scale * mean

    @property
    def is_finite(self) -> bool:
        """Whether every entry is a number that can be computed with."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def then(self, after: Affine) -> Affine:
        """The map `after(self(x))`."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)
