"""Look into a run: a sample of each tensor, channel by channel.

A whole run's tensors in float64 take gigabytes. What a wrong weight or bias does, it does to every
element of its channel, except at the border, where padding is seen: so up to `PLACES` places of
each channel are kept, the corners of the tensor first, the others at random. The places follow
from the shape alone, so that they are the same in every run of either model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.core.forest import IntArray, each_once
from bnfold.verify.runner import Gather, wide

PLACES = 48
"""Places kept of each channel."""
_CORNERS = 16


@dataclass(frozen=True, slots=True, eq=False)
class TensorSample:
    """What was kept of a tensor."""

    kind: str
    """What made it."""
    shape: tuple[int, ...]
    axis: int
    """The channel axis."""
    values: FloatArray
    """(channels, places)"""


@dataclass(slots=True)
class TensorSampler:
    """A watch that keeps samples; see `runner.Watch`."""

    axes: Mapping[str, int] = field(default_factory=dict)
    """The channel axis of tensors whose own is not the usual one, by key."""
    seen: dict[str, TensorSample] = field(default_factory=dict)

    def __call__(self, key: str, kind: str, shape: tuple[int, ...], gather: Gather) -> None:
        """Keep a sample of the tensor."""
        if 0 in shape:
            return
        axis = self.axes.get(key, usual_axis(len(shape)))
        if axis >= max(1, len(shape)):
            axis = usual_axis(len(shape))
        places = flat_places(shape, axis)
        self.seen[key] = TensorSample(kind, shape, axis, wide(gather(places)))


def usual_axis(rank: int) -> int:
    """Where images, sequences of vectors and rows have their channels."""
    return 1 if rank > 1 else 0


@cache
def flat_places(shape: tuple[int, ...], axis: int) -> IntArray:
    """Flat indices of the places kept, (channels, places)."""
    if not shape:
        return np.zeros((1, 1), dtype=np.int64)
    if len(shape) == 1:
        return np.arange(min(shape[0], PLACES * 64), dtype=np.int64)[None]
    rest = [length for dim, length in enumerate(shape) if dim != axis]
    total = math.prod(rest)
    if total <= PLACES:
        inner = np.arange(total)
    else:
        corners = itertools.product(*((0, length - 1) for length in rest))
        chosen = [np.ravel_multi_index(c, rest) for c in itertools.islice(corners, _CORNERS)]
        others = np.random.default_rng(total).integers(0, total, PLACES - len(set(chosen)))
        inner = each_once(np.concatenate([np.array(chosen), others]))
    coordinates = list(np.unravel_index(inner, rest))
    coordinates.insert(axis, np.zeros_like(inner))
    first = np.ravel_multi_index(coordinates, shape)  # of channel 0
    step = math.prod(shape[axis + 1 :])
    return np.asarray(first[None] + step * np.arange(shape[axis])[:, None], dtype=np.int64)


def broadcast_places(array: FloatArray, shape: tuple[int, ...], axis: int) -> FloatArray:
    """The elements of an array that broadcasts to `shape`, at the places kept."""
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    places = flat_places(shape, axis)
    if array.size == 1:
        return np.broadcast_to(array.reshape(1, 1), places.shape)
    if len(shape) > 1 and array.size == array.shape[axis]:  # it varies along the channels alone
        return np.broadcast_to(array.reshape(-1, 1), places.shape)
    coordinates = np.unravel_index(places, shape)
    picked = [0 if n == 1 else index for n, index in zip(array.shape, coordinates, strict=True)]
    return np.broadcast_to(array[tuple(picked)], places.shape)
