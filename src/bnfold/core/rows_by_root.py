"""Which rows wait for which roots: found again in time that depends on how many are found.

Entries (root, row) hang in one linked list per root, all lists in two arrays. A root that gets a
parent hands its rows out once; who still wants them puts them under the new root.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.forest import IntArray


class RowsByRoot:
    """The lists; see the module's head."""

    def __init__(self) -> None:
        self._head = np.zeros(0, dtype=np.int64)
        """Per root, its newest entry, or -1."""
        self._row = np.zeros(0, dtype=np.int64)
        self._next = np.zeros(0, dtype=np.int64)
        """Per entry, the next one of its root, or -1."""
        self._count = 0

    def put(self, roots: IntArray, rows: IntArray, *, among: int) -> None:
        """Hang each row under its root, a number below `among`."""
        if not len(roots):
            return
        self._make_room(among, len(rows))
        order = np.argsort(roots, kind="stable")
        roots, rows = roots[order], rows[order]
        entries = np.arange(self._count, self._count + len(rows))
        starts = np.ones(len(roots), dtype=bool)
        starts[1:] = roots[1:] != roots[:-1]
        ends = np.roll(starts, -1)  # the last one ends where the first one starts
        self._row[entries] = rows
        self._next[entries] = np.where(ends, self._head[roots], entries + 1)
        self._head[roots[starts]] = entries[starts]
        self._count += len(rows)

    def take(self, roots: IntArray) -> list[IntArray]:
        """Take down the rows of these roots, each once; a row may be there several times."""
        rows = []
        entries = self._head[roots]
        self._head[roots] = -1
        while len(entries := np.extract(entries >= 0, entries)):
            rows.append(self._row[entries])
            entries = self._next[entries]
        return rows

    def _make_room(self, roots: int, entries: int) -> None:
        self._head = _grown(self._head, roots, -1)
        self._row = _grown(self._row, self._count + entries, 0)
        self._next = _grown(self._next, self._count + entries, -1)


def _grown(values: IntArray, count: int, filler: int) -> IntArray:
    """At least `count` long; grown by halves, so that growing stays cheap in all."""
    have = len(values)
    if have >= count:
        return values
    more = max(count, have + have // 2) - have
    return np.concatenate([values, np.full(more, filler, dtype=np.int64)])
