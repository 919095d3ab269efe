"""A per-channel affine map y = scale * x + shift, and where BatchNorm gets its own from.

    BatchNorm (Ioffe & Szegedy, arXiv 1502.03167) at inference, per channel:
        y = gamma * (x - mean) / sqrt(var + eps) + beta  =  a * x + b
        a = gamma / sqrt(var + eps)          b = beta - a * mean

All arithmetic is float64: weights are rounded once, when they are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


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
        var64 = np.asarray(var, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 1.0 / np.sqrt(var64 + eps)
        if gamma is not None:
            scale = scale * np.asarray(gamma, dtype=np.float64)
        shift = -scale * mean64
        if beta is not None:
            shift = shift + np.asarray(beta, dtype=np.float64)
        return cls(scale, shift)

    @property
    def is_finite(self) -> bool:
        """Whether every entry is a number that can be computed with."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def then(self, after: Affine) -> Affine:
        """The map `after(self(x))`."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)
