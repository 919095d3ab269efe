"""What the functions that run one Caffe layer are given: its fields, its blobs and its bottoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class NotRunnableError(Exception):
    """This layer, as it is configured, is none that is known here: it is left out of the run."""


class Fields(Protocol):
    """Read access to one message of a prototxt, such as `convolution_param { ... }`."""

    def has(self, name: str) -> bool:
        """Whether the field is written at all."""

    def integer(self, name: str, default: int) -> int:
        """A whole number."""

    def integers(self, name: str) -> list[int]:
        """All values of a repeated field of whole numbers."""

    def number(self, name: str, default: float) -> float:
        """A float field: rounded to float32, as Caffe holds it."""

    def numbers(self, name: str) -> list[float]:
        """All values of a repeated float field, rounded to float32."""

    def flag(self, name: str, default: bool) -> bool:  # noqa: FBT001  # a field's default
        """A truth value."""

    def word(self, name: str, default: str) -> str:
        """The name of an enum's value."""

    def message(self, name: str) -> Fields:
        """A message within the message; an empty one if it is not written."""


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


Run = Callable[[Step], Sequence[Tensor]]
"""Runs one layer: its tops."""


def axis_of(step: Step, fields: Fields, default: int, *, name: str = "axis") -> int:
    """The axis that a field names, counted from the end if negative."""
    rank = step.bottoms[0].dim()
    axis = fields.integer(name, default)
    if not -rank <= axis < rank:
        raise NotRunnableError(f"{name} {axis} of a blob with {rank} axes")
    return axis % rank


def along(values: Tensor, axis: int, rank: int) -> Tensor:
    """`values` laid from `axis` on: (C,) as (C, 1, 1) against (N, C, H, W)."""
    return values.reshape((*values.shape, *(1,) * (rank - axis - values.dim())))
