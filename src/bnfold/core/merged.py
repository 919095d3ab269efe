"""Several ops whose work one of them does: what a search finds, and a frontend writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnfold.core.graph import Graph, Sum
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
        """The tensors that are gone, or hold something else: what its ops make, but the output.

        With `enters`, the output is that of the first sum which all that changes comes to; those on
        the way hold more of the merged op, or less.
        """
        ops = {self.carrier, *self.gone, *self.sums, *self.tail}
        output = self.output
        if self.enters is not None:
            ways = [_sums_from(graph, number) for number in (self.enters[0], *self.sums)]
            last = next(number for number in ways[0] if all(number in way for way in ways))
            ops.update(number for way in ways for number in way[: way.index(last)])
            (output,) = graph.ops[last].outputs
        return frozenset(tensor for n in ops for tensor in graph.ops[n].outputs) - {output}

    @property
    def is_affine(self) -> bool:
        """Whether the carrier is an affine step."""
        return self.groups == 0


def _sums_from(graph: Graph, number: int) -> list[int]:
    """A sum, the one that it goes into, and so on."""
    readers = {
        t: n for n, op in enumerate(graph.ops) if isinstance(op.role, Sum) for t in op.inputs
    }
    way = [number]
    while (reader := readers.get(graph.ops[way[-1]].outputs[0])) is not None:
        way.append(reader)
    return way
