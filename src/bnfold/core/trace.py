"""Which ops took a removed affine step in: the names a user wants to read.

A step whose input comes straight from one linear op went into that op. Any other went into the ops
that read its output, directly or, failing that, through the sums of its class.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from bnfold.core.binding import Binding, BoundAffine, BoundLinear
from bnfold.core.forest import IntArray, each_once
from bnfold.core.graph import Op


class Trace:
    """Makers and readers of every variable among the edited ops, looked up in one go."""

    def __init__(self, binding: Binding, edited: Collection[int]) -> None:
        self.binding = binding
        self.edited = frozenset(edited)
        self.maker = np.full(binding.system.count, -1, dtype=np.int64)
        read: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        by: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        for number in edited:
            bound = binding.bound[number]
            if isinstance(bound, BoundLinear | BoundAffine):
                self.maker[bound.outputs] = number
                read.append(bound.inputs)
                by.append(np.full(len(bound.inputs), number))
        variables, readers = np.concatenate(read), np.concatenate(by)
        # The readers of variable v are reader[start[v] : start[v + 1]].
        self.reader = readers[np.argsort(variables, kind="stable")]
        count = np.bincount(variables, minlength=binding.system.count)
        self.start = np.concatenate([[0], np.cumsum(count)])

    def into(self, number: int) -> tuple[str, ...]:
        """The names of the edited ops that now do a removed step's work."""
        bound = self.binding.bound[number]
        assert isinstance(bound, BoundAffine)
        made = self.maker[bound.inputs]
        if len(made) and made[0] >= 0 and (made == made[0]).all():
            return self._names(made[:1])
        readers = self._readers(bound.outputs)
        if len(readers):
            return self._names(readers)
        makers = each_once(made[made >= 0])
        return self._names(
            makers if len(makers) else self._upstream(self.binding.graph.ops[number])
        )

    def beside(self, outputs: IntArray, op: Op) -> tuple[str, ...]:
        """The names for steps that went with a sum: who reads the sum, or else who made it."""
        readers = self._readers(outputs)
        return self._names(readers if len(readers) else self._upstream(op))

    def _names(self, numbers: IntArray) -> tuple[str, ...]:
        names = (self.binding.graph.ops[number].name for number in numbers.tolist())
        return tuple(dict.fromkeys(names))

    def _readers(self, variables: IntArray) -> IntArray:
        start, count = self.start[variables], self.start[variables + 1] - self.start[variables]
        before = np.cumsum(count) - count
        return each_once(self.reader[np.arange(count.sum()) + np.repeat(start - before, count)])

    def _upstream(self, op: Op) -> IntArray:
        """The nearest edited ops whose values reach an op, through sums and the like."""
        ops = self.binding.graph.ops
        makers = {tensor: index for index, one in enumerate(ops) for tensor in one.outputs}
        found: set[int] = set()
        seen: set[int] = set()
        queue = list(op.inputs)
        while queue:
            tensor = queue.pop()
            index = makers.get(tensor)
            if tensor in seen or index is None:
                continue
            seen.add(tensor)
            if index in self.edited:
                found.add(index)
            else:
                queue.extend(ops[index].inputs)
        return np.array(sorted(found), dtype=np.int64)
