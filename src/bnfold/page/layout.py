"""Where each op of a network is drawn: rows by depth, columns by branch, edges in tracks.

    row      the longest path from an input: what runs side by side stands side by side
    column   the column of the deepest op that it reads, or the nearest free one
    edge     to the next row straight or by one bend; a longer one leaves its row, goes down a
             track in the gutter beside a column, and turns in above its reader. All readers of one
             op share its track, so the 24 readers of a DenseNet's layer make one line, not 24.
    strip    the rows are cut into strips, set side by side like the columns of a newspaper, where
             the fewest values cross; a value that crosses goes on at the head of the next strip

One pass over the ops and edges for each number of strips that is tried; and the same network gives
the same drawing. See docs/design/0006-report-page.md for why no layout library does this.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

HEIGHT = 34
"""Of a box; all have one width, which the drawing decides."""
_TRACK, _LEVEL = 7, 6
"""Between parallel edges, vertical and horizontal."""
_GUTTER, _GAP, _TIGHT = 20, 18, 8
"""Between columns; between rows with bends between them, and without."""
_STRIP_GAP, _MARGIN = 30, 12
_ASPECT = 1.9
"""Width to height that the strips aim at."""
_TRIES = (-2, -1, 0, 1)
"""So many more strips than estimated are tried."""
_REACH = 0.3
"""How far a cut may move from where strips would be equal, as a part of a strip."""

Point = tuple[int, int]
Line = tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing without colours."""

    boxes: tuple[Point, ...]
    """Upper left corner of each op's box."""
    lines: dict[int, tuple[Line, ...]]
    """Per op, the corners of what leads from it to its readers."""
    arrows: tuple[Point, ...]
    """Where an arrow ends: on top of boxes."""
    width: int
    height: int

    @property
    def extent(self) -> float:
        """Of the window that holds it."""
        return max(self.width, self.height * _ASPECT)


Place = tuple[int, int]
"""Row inside of a strip, column; row -1 is where values come in from the strip before."""


@dataclass(slots=True)
class _Strip:
    """Rows that are set above each other."""

    first: int
    last: int
    places: dict[int, Place] = field(default_factory=dict)
    """Of ops, and of values that come in."""
    entering: list[int] = field(default_factory=list)
    slim: dict[int, int | None] = field(default_factory=dict)
    """Values that come in on a track, with its gutter; the others come in above a column."""
    leaving: list[int] = field(default_factory=list)
    ways: list[_Way] = field(default_factory=list)
    tracks: dict[tuple[int, int], int] = field(default_factory=dict)
    """Track per (source, gutter)."""
    levels: dict[tuple[str, int], int] = field(default_factory=dict)
    """Level per op: ("out", source) below it, ("in", reader) above it."""
    columns: list[int] = field(default_factory=list)
    """The left edge of each column."""
    rows: list[int] = field(default_factory=list)
    """The upper edge of each row, and the lower edge of the strip."""
    right: int = 0
    width: int = 0
    """Of its boxes."""

    @property
    def height(self) -> int:
        return self.last - self.first + 1

    @property
    def top(self) -> int:
        """Where the values from the strip before come in."""
        return _MARGIN + _LEVEL * len(self.entering)


@dataclass(frozen=True, slots=True)
class _Way:
    """From an op to a reader, or out of the strip (None)."""

    source: int
    reader: int | None
    gutter: int | None
    """None for a way to the next row."""


def lay_out(inputs: Sequence[Sequence[int]], width: int) -> Drawing:
    """Place boxes of a width, given by what they read; each reads only boxes before it."""
    rows = _rows(inputs)
    until = _last_readers(inputs, rows)
    estimate = _strips(rows, width)
    counts = sorted({max(1, estimate + more) for more in _TRIES})
    drawings = [_lay_out(inputs, rows, until, count, width) for count in counts]
    return min(drawings, key=lambda drawing: drawing.extent)


def _lay_out(
    inputs: Sequence[Sequence[int]], rows: list[int], until: list[int], count: int, width: int
) -> Drawing:
    strips = _cut(rows, until, count)
    _enter_and_leave(strips, rows, until)
    columns: dict[int, int] = {}
    by_row: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_row[row].append(number)
    deepest = [max(read, key=rows.__getitem__, default=None) for read in inputs]
    left = _MARGIN
    for strip in strips:
        strip.width = width
        _place_entering(strip, {deepest[number] for number in by_row[strip.first]}, rows, columns)
        _place(strip, by_row, deepest, columns)
        _find_ways(strip, by_row, inputs)
        _assign_tracks(strip)
        _assign_levels(strip)
        _measure(strip, left)
        left = strip.right + _STRIP_GAP + _TRACK * len(strip.leaving)
    return _draw(strips, len(inputs))


# ------------------------------------------------------------------------------------- rows, strips


def _rows(inputs: Sequence[Sequence[int]]) -> list[int]:
    rows: list[int] = []
    for read in inputs:
        rows.append(1 + max((rows[source] for source in read), default=-1))
    wanted: dict[int, int] = {}
    for number, read in enumerate(inputs):
        for source in read:
            if not inputs[source]:  # a constant or an input stands right above its first reader
                wanted[source] = min(wanted.get(source, rows[number]), rows[number])
    for source, row in wanted.items():
        rows[source] = row - 1
    return rows


def _last_readers(inputs: Sequence[Sequence[int]], rows: list[int]) -> list[int]:
    """The last row in which each op is read; its own if nobody reads it."""
    until = list(rows)
    for number, read in enumerate(inputs):
        for source in read:
            until[source] = max(until[source], rows[number])
    return until


def _strips(rows: list[int], width: int) -> int:
    """About how many strips give a drawing of the wanted shape."""
    count = max(rows, default=-1) + 1
    across = max(1.0, len(rows) / max(1, count)) * (width + _GUTTER) + _STRIP_GAP
    return max(1, round(math.sqrt(count * (HEIGHT + _TIGHT) * _ASPECT / across)))


def _cut(rows: list[int], until: list[int], strips: int) -> list[_Strip]:
    count = max(rows, default=-1) + 1
    if not count:
        return []
    change = [0] * (count + 1)
    for row, end in zip(rows, until, strict=True):
        change[row] += 1
        change[end] -= 1
    crossing = []  # how many values go from each row into the next
    alive = 0
    for step in change[:count]:
        alive += step
        crossing.append(alive)
    length = math.ceil(count / strips)
    pieces, first = [], 0
    while count - first > length * (1 + _REACH):
        ideal = first + length - 1
        reach = int(length * _REACH)
        candidates = range(max(first, ideal - reach), ideal + reach + 1)
        last = min(candidates, key=lambda row: (crossing[row], abs(row - ideal)))
        pieces.append(_Strip(first, last))
        first = last + 1
    pieces.append(_Strip(first, count - 1))
    return pieces


def _enter_and_leave(strips: list[_Strip], rows: list[int], until: list[int]) -> None:
    for place, strip in enumerate(strips[:-1]):
        strip.leaving = [
            number
            for number, (row, end) in enumerate(zip(rows, until, strict=True))
            if row <= strip.last < end
        ]
        strips[place + 1].entering = strip.leaving


# ---------------------------------------------------------------------------------- columns, tracks


def _place(
    strip: _Strip,
    by_row: dict[int, list[int]],
    deepest: Sequence[int | None],
    columns: dict[int, int],
) -> None:
    """Give every op of a strip a column, that of the deepest op it reads if it is free."""
    for row in range(strip.first, strip.last + 1):
        taken: set[int] = set()
        for number in sorted(by_row[row], key=lambda number: deepest[number] is None):
            source = deepest[number]
            column = _free(taken, 0 if source is None else columns[source])
            taken.add(column)
            columns[number] = column
            strip.places[number] = (row - strip.first, column)


def _place_entering(
    strip: _Strip, read_first: AbstractSet[int | None], rows: list[int], columns: dict[int, int]
) -> None:
    """One value per op of the first row comes in above it; the rest comes in on its track.

    `columns` holds those of the strip before.
    """
    order = sorted(strip.entering, key=lambda number: (columns[number], -rows[number], number))
    above = [number for number in order if number in read_first]
    columns.update(zip(above, range(len(above)), strict=True))
    for number in order:
        columns[number] = min(columns[number], max(0, len(above) - 1))
        strip.places[number] = (-1, columns[number])
        if number not in read_first:
            strip.slim[number] = None


def _free(taken: set[int], wanted: int) -> int:
    for away in range(len(taken) + 1):
        if wanted + away not in taken:
            return wanted + away
        if wanted >= away and wanted - away not in taken:
            return wanted - away
    raise AssertionError("one of len(taken) + 1 columns is free")


def _find_ways(
    strip: _Strip, by_row: dict[int, list[int]], inputs: Sequence[Sequence[int]]
) -> None:
    for row in range(strip.first, strip.last + 1):
        for reader in by_row[row]:
            reader_row, column = strip.places[reader]
            for source in dict.fromkeys(inputs[reader]):
                source_row, source_column = strip.places[source]
                gutter = None
                if reader_row - source_row > 1 or source in strip.slim:
                    gutter = column - 1 if column > source_column else column
                strip.ways.append(_Way(source, reader, gutter))
    for source in strip.leaving:
        row, column = strip.places[source]
        gutter = None if row == strip.height - 1 else column
        strip.ways.append(_Way(source, None, gutter))
    for way in strip.ways:
        if way.source in strip.slim and strip.slim[way.source] is None:
            strip.slim[way.source] = way.gutter


def _assign_tracks(strip: _Strip) -> None:
    """Parallel edges in a gutter keep apart: the first free track from above to below."""
    ends: dict[tuple[int, int], int] = {}
    for way in strip.ways:
        if way.gutter is not None:
            end = strip.height if way.reader is None else strip.places[way.reader][0]
            key = (way.gutter, way.source)
            ends[key] = max(ends.get(key, end), end)
    per_gutter: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for (gutter, source), end in ends.items():
        per_gutter[gutter].append((strip.places[source][0], end, source))
    for gutter, spans in per_gutter.items():
        for (_, _, source), track in zip(sorted(spans), _colour(sorted(spans)), strict=True):
            strip.tracks[source, gutter] = track


def _assign_levels(strip: _Strip) -> None:
    """The same for the horizontal parts between two rows, counted in halves of columns."""
    extents: dict[tuple[str, int], tuple[int, int]] = {}
    for way in strip.ways:
        own = 2 * strip.places[way.source][1]
        slim = strip.slim.get(way.source)
        if slim is not None:
            own = 2 * slim + 1
        if way.gutter is not None:
            middle = 2 * way.gutter + 1
            if own != middle:
                _widen(extents, ("out", way.source), own, middle)
            if way.reader is not None:
                _widen(extents, ("in", way.reader), middle, 2 * strip.places[way.reader][1])
        elif way.reader is not None and own != 2 * strip.places[way.reader][1]:
            _widen(extents, ("out", way.source), own, 2 * strip.places[way.reader][1])
    gaps: dict[tuple[str, int], list[tuple[int, int, int]]] = defaultdict(list)
    for (side, number), (low, high) in extents.items():
        gaps[side, strip.places[number][0]].append((low, high, number))
    for (side, _), spans in gaps.items():
        for (_, _, number), level in zip(sorted(spans), _colour(sorted(spans)), strict=True):
            strip.levels[side, number] = level


def _widen(
    extents: dict[tuple[str, int], tuple[int, int]], key: tuple[str, int], start: int, end: int
) -> None:
    low, high = extents.get(key, (start, start))
    extents[key] = (min(low, start, end), max(high, start, end))


def _colour(spans: Iterable[tuple[int, int, int]]) -> list[int]:
    """A number per span, in order of their starts, so that spans of one number do not meet."""
    ends: list[int] = []
    numbers = []
    for start, end, _ in spans:
        number = next((n for n, busy in enumerate(ends) if busy < start), len(ends))
        ends[number:] = [end, *ends[number + 1 :]]
        numbers.append(number)
    return numbers


# -------------------------------------------------------------------------------------- coordinates


def _measure(strip: _Strip, left: int) -> None:
    count = 1 + max(column for _, column in strip.places.values())
    tracks = [0] * count
    for (_, gutter), track in strip.tracks.items():
        tracks[gutter] = max(tracks[gutter], track + 1)
    for wide in tracks:
        strip.columns.append(left)
        left += strip.width + _GUTTER + _TRACK * wide
    strip.right = left
    levels = [0] * (strip.height + 1)  # above each row, and below the last
    for side in ("out", "in"):
        deepest: dict[int, int] = {}
        for (which, number), level in strip.levels.items():
            if which == side:
                row = strip.places[number][0] + (side == "out")
                deepest[row] = max(deepest.get(row, 0), level + 1)
        for row, many in deepest.items():
            levels[row] += many
    top = strip.top
    for row in range(strip.height):
        top += _GAP + _LEVEL * levels[row] if levels[row] else _TIGHT
        strip.rows.append(top)
        top += HEIGHT
    strip.rows.append(top + _GAP + _LEVEL * levels[-1])


def _draw(strips: list[_Strip], count: int) -> Drawing:
    boxes: list[Point] = [(0, 0)] * count
    lines: dict[int, list[Line]] = defaultdict(list)
    arrows: dict[Point, None] = {}
    bottom = max((strip.rows[-1] for strip in strips), default=0)
    for position, strip in enumerate(strips):
        for number, (row, column) in strip.places.items():
            if row >= 0:
                boxes[number] = (strip.columns[column], strip.rows[row])
        trunks = {(way.source, way.gutter): way for way in strip.ways}  # the last reader's
        for way in strip.ways:
            line = _line(strip, way)
            if way.gutter is not None and trunks[way.source, way.gutter] is not way:
                line = line[-3:]  # the rest is part of the trunk
            if way.reader is not None:
                arrows[line[-1]] = None
            else:
                place = strip.leaving.index(way.source)
                line += _to_next(strips[position + 1], strip, line[-1], way.source, place, bottom)
            lines[way.source].append(line)
    right = max((strip.right for strip in strips), default=0)
    drawn = {source: tuple(own) for source, own in sorted(lines.items())}
    most = max((len(strip.leaving) for strip in strips), default=0)
    return Drawing(
        tuple(boxes),
        drawn,
        tuple(arrows),
        right - _GUTTER + _MARGIN,
        bottom + _LEVEL * (most + 1) + _MARGIN,
    )


def _middle(strip: _Strip, number: int) -> int:
    slim = strip.slim.get(number)
    if slim is not None:
        return _beside(strip, number, slim)
    return strip.columns[strip.places[number][1]] + strip.width // 2


def _beside(strip: _Strip, source: int, gutter: int) -> int:
    """Where the track of an op is."""
    return (
        strip.columns[gutter] + strip.width + _GUTTER // 2 + _TRACK * strip.tracks[source, gutter]
    )


def _below(strip: _Strip, number: int) -> int:
    """The lower edge of a box, or where a value comes in."""
    row = strip.places[number][0]
    return strip.top if row < 0 else strip.rows[row] + HEIGHT


def _line(strip: _Strip, way: _Way) -> Line:
    x, y = _middle(strip, way.source), _below(strip, way.source)
    out = y + 7 + _LEVEL * strip.levels.get(("out", way.source), 0)
    end: Line = ((x, strip.rows[-1]),)
    if way.reader is not None:
        end = ((_middle(strip, way.reader), strip.rows[strip.places[way.reader][0]]),)
    if way.gutter is None:
        bend: Line = () if end[0][0] == x else ((x, out), (end[0][0], out))
        return ((x, y), *bend, *end)
    beside = _beside(strip, way.source, way.gutter)
    if way.reader is None:
        return ((x, y), (x, out), (beside, out), (beside, strip.rows[-1]))
    above = end[0][1] - 9 - _LEVEL * strip.levels.get(("in", way.reader), 0)
    return ((x, y), (x, out), (beside, out), (beside, above), (end[0][0], above), *end)


def _to_next(
    following: _Strip, strip: _Strip, start: Point, source: int, place: int, bottom: int
) -> Line:
    """Below the strip, up between the two, and down into the next one."""
    low = bottom + _LEVEL * (place + 1)
    between = strip.right - _GUTTER // 2 + _STRIP_GAP // 2 + _TRACK * place
    high = following.top - _LEVEL * (place + 1)
    x = _middle(following, source)
    return ((start[0], low), (between, low), (between, high), (x, high), (x, following.top))
