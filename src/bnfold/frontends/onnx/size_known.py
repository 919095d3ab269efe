"""What is known of a node when the lengths of its axes are asked for: see `size_axes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.size_values import Elements, is_open, size_at
from bnfold.frontends.onnx.sizes import Size

Shape = tuple[int, ...]
Sizes = tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a node and one of its outputs."""

    node: Node
    opset: int
    output: Sequence[Shape]
    """Its shape per choice."""
    shapes: Sequence[Sequence[Shape] | None]
    """Those of the inputs per choice, where they are known."""
    inputs: Sequence[Sizes | None]
    """The lengths of the inputs' axes."""
    value: Callable[[str], NDArray[Any] | None]
    """A small constant, under the first choice."""
    elements: Sequence[Elements | None]
    """What the elements of inputs that are constants depend on."""

    @property
    def source(self) -> Sizes:
        """The first input."""
        return self.sizes(0)

    def sizes(self, position: int) -> Sizes:
        """An input. Raises ValueError if its shape is not known."""
        sizes = self.inputs[position]
        if sizes is None:
            raise ValueError("its shape is not known")
        return sizes

    def given(self, position: int) -> bool:
        """Whether there is an operand at that place."""
        return bool(self.node.input(position))

    def array(self, position: int) -> NDArray[Any] | None:
        """An operand that is a constant, under the first choice."""
        return self.value(self.node.input(position)) if self.given(position) else None

    def length(self, position: int, place: int) -> tuple[int, Size]:
        """An element of an operand: the number under the first choice, and as a length."""
        array = self.array(position)
        if array is None:
            raise ValueError("it is not known")
        return int(array.reshape(-1)[place]), size_at(self.elements[position], array, place)

    def fixed_list(self, position: int) -> tuple[int, ...] | None:
        """All elements of an operand, if they are the same for every input."""
        array = self.array(position)
        if array is None or is_open(self.elements[position]):
            return None
        return tuple(int(number) for number in array.reshape(-1))


def is_same(shapes: Sequence[Shape], axis: int) -> bool:
    """Whether an axis has one length under all choices."""
    return len({shape[axis] for shape in shapes}) == 1
