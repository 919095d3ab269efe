"""What the functions that run one Caffe layer are given: its fields, its blobs and its bottoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class NotRunnableError(Exception):
    """This layer, as it is configured, is none that is known here: it is left out of the run."""


class Fields(Protocol):
    """Read access to one message of a prototxt: `bnfold.frontends.caffe.options.Options`."""

    def part(self, name: str) -> Fields:
        """The message inside, empty if there is none."""

    def has(self, *names: str) -> bool:
        """Whether any of these fields is there."""

    def flag(self, name: str, *, default: bool) -> bool:
        """A flag."""

    def integer(self, name: str, default: int) -> int:
        """A whole number."""

    def integers(self, name: str) -> list[int]:
        """The whole numbers of a repeated field."""

    def number(self, name: str, default: float) -> float:
        """A number."""

    def numbers(self, name: str) -> list[float]:
        """The numbers of a repeated field."""

    def word(self, name: str, default: str, numbered: Mapping[int, str]) -> str:
        """A word of an enum, which may be written as its number."""


def single(fields: Fields, name: str, default: float) -> float:
    """A number as Caffe holds it, in float32."""
    return float(np.float32(fields.number(name, default)))


def singles(fields: Fields, name: str) -> list[float]:
    """The numbers of a repeated field as Caffe holds them, in float32."""
    return [float(np.float32(value)) for value in fields.numbers(name)]


@dataclass(frozen=True, slots=True)
class Step:
    """One layer about to run."""

    fields: Fields
    """The layer's message."""
    blobs: tuple[Tensor, ...]
    """Its parameters, of the run's dtype."""
    bottoms: tuple[Tensor, ...]
    """Its inputs."""
    tops: int
    """How many outputs it has."""
    is_testing: bool = True
    """Whether it runs in the TEST phase."""

    def only_bottom(self) -> Tensor:
        """The single input."""
        if len(self.bottoms) != 1:
            raise NotRunnableError(f"{len(self.bottoms)} bottoms")
        return self.bottoms[0]

    def blob(self, number: int, shape: Sequence[int]) -> Tensor:
        """A parameter in this shape: old files hold it with axes of length 1 in front."""
        if number >= len(self.blobs):
            raise NotRunnableError(f"blob {number} is missing")
        blob = self.blobs[number]
        if blob.numel() != torch.Size(shape).numel():
            raise NotRunnableError(f"blob {number} is {tuple(blob.shape)}, not {tuple(shape)}")
        return blob.reshape(tuple(shape))

    def axis(self, fields: Fields, default: int, *, name: str = "axis") -> int:
        """The axis of the first input that a field names, counted from the end if negative."""
        rank = self.bottoms[0].dim()
        axis = fields.integer(name, default)
        if not -rank <= axis < rank:
            raise NotRunnableError(f"{name} {axis} of a blob with {rank} axes")
        return axis % rank


Run = Callable[[Step], Sequence[Tensor]]
"""Runs one layer: its tops."""


def along(values: Tensor, axis: int, rank: int) -> Tensor:
    """`values` laid from `axis` on: (C,) as (C, 1, 1) against (N, C, H, W)."""
    return values.reshape((*values.shape, *(1,) * (rank - axis - values.dim())))
