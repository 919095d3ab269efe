"""The drawing as SVG: boxes for ops, lines for what they read; every name is escaped.

Colours are the style sheet's. What a colour says, a word in the box says too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from bnfold.network import INPUT, OUTPUT, State
from bnfold.page.layout import Drawing, Line, lay_out
from bnfold.page.text import escape, head, tail, width_of

if TYPE_CHECKING:
    from bnfold.network import NetworkNode
    from bnfold.outcomes import Outcomes

KIND, ALONE, NAME, WORD = 12, 18, 11, 10
"""Sizes of the fonts in a box, as in the style sheet: of the kind, bold, and on its own from a
distance; of the name; of the word for its state."""
_PADDING, _ROUND, _BETWEEN = 14, 28, 8
"""Left and right in a box together, in a round one, and between the kind and the word."""
_NARROWEST, _NAMED, _WIDEST = 150, 200, 240
"""Of boxes; a name asks for so much at most, and a kind: what is longer is cut."""
_RADIUS = 4
"""Of the corners of lines."""
FAR = 400
"""From so many ops on, the whole drawing is too small for words to be read."""

WORDS = {
    State.PLAIN: "",
    State.EDITED: "edited",
    State.BOUNDS: "bounds",
    State.KEPT: "kept",
    State.REMOVED: "removed",
    State.CARRIER: "merges",
    State.MERGED: "merged",
}
"""What stands in a box."""
WOULD = WORDS | {
    State.BOUNDS: "gets bounds",
    State.KEPT: "would stay",
    State.REMOVED: "would go",
    State.MERGED: "would go",
}
"""The same where nothing has been done yet."""
Words = Mapping[State, str]
BLOCKS = "blocks"
"""What stands in the box of an op that keeps a BatchNorm in place."""


def words_of(report: Outcomes) -> Words:
    """What stands in the boxes of a report."""
    return WOULD if report.is_planned else WORDS


def box_width(nodes: Iterable[NetworkNode], words: Words = WORDS) -> int:
    """Wide enough for the kind and state of every op that the fold is about, and of most others."""
    about: list[float] = []
    others: list[float] = []
    names: list[float] = []
    for node in nodes:
        is_about = node.blocker or node.state is not State.PLAIN
        (about if is_about else others).append(_needed(node, words))
        names.append(min(width_of(_name(node), NAME) + _PADDING, _NAMED))
    widest = max(max(about, default=0.0), _most(others), _most(names))
    return math.ceil(min(max(widest, _NARROWEST), _WIDEST))


def _most(widths: list[float]) -> float:
    """Enough for nine of ten: one long name makes no drawing wide."""
    return sorted(widths)[(len(widths) - 1) * 9 // 10] if widths else 0.0


def _needed(node: NetworkNode, words: Words) -> float:
    beside = width_of(node.kind, KIND, bold=True) + _beside(node, words)
    return max(beside, width_of(node.kind, ALONE)) + _PADDING


def _name(node: NetworkNode) -> str:
    """ONNX's exporters end a node's name in its type, which stands above it."""
    return node.name.removesuffix(f"/{node.kind}")


def _beside(node: NetworkNode, words: Words) -> float:
    """What the word for the state takes away from the kind."""
    word = _word(node, words)
    return width_of(word, WORD) + _BETWEEN if word else 0.0


def _word(node: NetworkNode, words: Words) -> str:
    return BLOCKS if node.blocker else words[node.state]


def draw_svg(
    nodes: Sequence[NetworkNode],
    *,
    title: str,
    identity: str,
    items: Mapping[str, int],
    width: int,
    words: Words = WORDS,
) -> str:
    """One drawing; `items` numbers the items of the report by name; `width` is that of boxes.

    Boxes and lines stand in the order of the ops, which the script counts on: the n-th path leads
    from the n-th box. A box that reads other boxes than the one before it says which (data-r).
    """
    drawing = lay_out([node.inputs for node in nodes], width)
    boxes = "".join(
        _box(node, number, corner, items, width, words)
        for number, (node, corner) in enumerate(zip(nodes, drawing.boxes, strict=True))
    )
    far = " far" if len(nodes) >= FAR else ""
    return (
        f'<svg class="network{far}" id="{identity}" viewBox="0 0 {drawing.width} {drawing.height}"'
        f' width="{drawing.width}" height="{drawing.height}" role="img"'
        f' preserveAspectRatio="xMidYMin meet" aria-label="{escape(title)}"><g class="view">'
        f'<g class="e">{_lines(drawing)}</g>{_arrows(drawing)}{boxes}</g></svg>'
    )


def _box(
    node: NetworkNode,
    number: int,
    corner: tuple[int, int],
    items: Mapping[str, int],
    width: int,
    words: Words,
) -> str:
    """Places and sizes inside of a box are the style sheet's: 2,000 boxes need not repeat them."""
    state = "end" if node.kind in (INPUT, OUTPUT) else str(node.state)
    blocks = " blocker" if node.blocker else ""
    reads = "" if node.inputs == (number - 1,) else f' data-r="{" ".join(map(str, node.inputs))}"'
    item = None if node.item is None else items.get(node.item)
    link = "" if item is None else f' data-item="{item}"'
    word = _word(node, words)
    tag = f'<text class="w">{word}</text>' if word else ""
    room = width - (_ROUND if state == "end" else _PADDING)
    near = head(node.kind, room - _beside(node, words), KIND, bold=True)
    kind = min(near, head(node.kind, room, ALONE), key=len)
    name = tail(_name(node), room, NAME)
    whole = "" if (kind, name) == (node.kind, node.name) else f"{node.name} ({node.kind})"
    title = f"<title>{escape(whole)}</title>" if whole else ""
    return (
        f'<g class="n {state}{blocks}"{reads}{link}'
        f' transform="translate({corner[0]} {corner[1]})">{title}<rect/>'
        f'<text class="k">{escape(kind)}</text><text>{escape(name)}</text>{tag}</g>'
    )


def _lines(drawing: Drawing) -> str:
    """One path per op, so that what leads away from it can be lit up."""
    return "".join(
        f'<path d="{"".join(map(_path, drawing.lines.get(source, ())))}"/>'
        for source in range(len(drawing.boxes))
    )


def _path(line: Line) -> str:
    """Straight parts, with rounded corners."""
    (x, y), *corners = _corners(line)
    parts = [f"M{x} {y}"]
    for number, corner in enumerate(corners):
        if number == len(corners) - 1:
            parts.append(f"V{corner[1]}" if corner[0] == x else f"L{corner[0]} {corner[1]}")
            break
        before, after = _towards(corner, (x, y)), _towards(corner, corners[number + 1])
        parts.append(f"L{before[0]} {before[1]}Q{corner[0]} {corner[1]} {after[0]} {after[1]}")
        x, y = after
    return "".join(parts)


def _corners(line: Line) -> list[tuple[int, int]]:
    """Without points on top of each other."""
    corners = [line[0]]
    corners += [point for before, point in pairwise(line) if point != before]
    return corners


def _towards(corner: tuple[int, int], end: tuple[int, int]) -> tuple[int, int]:
    """A little way from a corner along a horizontal or vertical part."""
    x, y = (end[0] - corner[0], end[1] - corner[1])
    far = min(_RADIUS, (abs(x) + abs(y)) // 2)
    return corner[0] + far * _sign(x), corner[1] + far * _sign(y)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _arrows(drawing: Drawing) -> str:
    heads = "".join(f"M{x - 3} {y - 5}l3 5l3 -5" for x, y in drawing.arrows)
    return f'<path class="heads" d="{heads}"/>' if heads else ""


_LEGEND = {
    State.EDITED: "edited: took a BatchNorm in, or makes up for one",
    State.REMOVED: "removed",
    State.CARRIER: "merges: does the work of others, too",
    State.MERGED: "merged into another",
    State.BOUNDS: "activation with one bound per channel",
    State.KEPT: "kept",
    "blocker": "blocks: keeps a BatchNorm in place",
    State.PLAIN: "unchanged",
}
_LEGEND_WOULD = _LEGEND | {
    State.EDITED: "edited: would take a BatchNorm in, or make up for one",
    State.REMOVED: "would go",
    State.CARRIER: "merges: would do the work of others, too",
    State.MERGED: "would be merged into another",
    State.BOUNDS: "activation that would get one bound per channel",
    State.KEPT: "would stay",
}
"""Where nothing has been done yet."""


def legend(nodes: Iterable[NetworkNode], words: Words = WORDS) -> str:
    """What the boxes mean, those that there are."""
    drawn = {css for node in nodes for css in (node.state, "blocker" if node.blocker else "")}
    entries = "".join(
        f'<li><svg viewBox="0 0 26 16" aria-hidden="true"><g class="n {css}">'
        f'<rect x="2" y="2"/></g></svg>{said}</li>'
        for css, said in (_LEGEND_WOULD if words is WOULD else _LEGEND).items()
        if css in drawn
    )
    return f'<ul class="legend" aria-label="Boxes">{entries}</ul>'
