"""Several ops whose work one of them does: what a search finds, and a frontend writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnfold.core.graph import Graph
from bnfold.core.kernel import Kernel
from bnfold.core.window import Window


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """Several ops whose work one of them does."""

    carrier: int
    """The op that does it: it gets the kernel, and reads the source."""
    source: int
    """A tensor."""
    output: int
    """The tensor that is made now; with `enters`, what that stands in the place of."""
    enters: tuple[int, int] | None
    """Where it makes but a part of a sum, or of a concat: the number of that, and which operand."""
    window: Window | None
    """None where there are no spatial axes."""
    groups: int
    kernel: Callable[[], Kernel]
    """Computed when it is asked for."""
    gone: frozenset[int]
    """The ops that are no longer needed; the carrier is not among them."""
    sums: Mapping[int, tuple[int, ...]]
    """Sums, and concats, that lose operands, with the positions of those that they keep. One that
    keeps a single operand is that operand, whatever its coefficient."""
    concat: int | None = None
    """The number of the concat, where they are siblings."""
    tail: tuple[int, ...] = ()
    """Elementwise ops that stay, behind the carrier: the last of them makes `output`, of which the
    shape may be another now."""

    def changed(self, graph: Graph) -> frozenset[int]:
        """The tensors that are gone, or hold something else: what its ops make, but the output."""
        ops = (self.carrier, *self.gone, *self.sums, *self.tail)
        made = frozenset(tensor for number in ops for tensor in graph.ops[number].outputs)
        return made - {self.output} if self.enters is None else made

    @property
    def is_affine(self) -> bool:
        """Whether the carrier is an affine step."""
        return self.groups == 0
