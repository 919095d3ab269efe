"""The network as it is drawn: one node per op that the user knows, before and after the fold.

Made from the lifted graph and the plan, the same for every frontend. A helper that a frontend added
without a kind of its own is part of the next op of its name. What `after` shows follows from
`before`: removed nodes are gone, and their readers read what they read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from bnfold.core import graph as g
from bnfold.core.plan import Plan


class State(StrEnum):
    """What a fold does to an op."""

    PLAIN = "plain"
    """Nothing."""
    EDITED = "edited"
    """It took something in: other weights, or other constants."""
    BOUNDS = "bounds"
    """An activation that got bounds per channel."""
    KEPT = "kept"
    """An affine step that stays."""
    REMOVED = "removed"
    """An affine step that is gone."""
    CARRIER = "carrier"
    """A linear op that does the work of others, too."""
    MERGED = "merged"
    """An op whose work another does now."""


class NetworkNode(NamedTuple):
    """One op, or a value that comes from or goes to the outside."""

    name: str
    """Module path, or node name."""
    kind: str
    """What it is: Conv2d, Relu, Convolution, ...; `INPUT` and `OUTPUT` are the outside."""
    inputs: tuple[int, ...] = ()
    """The nodes that it reads, by number; all of them come before it."""
    state: State = State.PLAIN
    """What the fold does to it."""
    blocker: bool = False
    """Whether it stands in the way of an affine step that is kept."""
    item: str | None = None
    """Name of its item in the report, if it has one."""


INPUT = "input"
"""Kind of a value that the user passes in."""
OUTPUT = "output"
"""Kind of a value that somebody outside reads."""


@dataclass(frozen=True, slots=True)
class Network:
    """Two drawings."""

    before: tuple[NetworkNode, ...]
    """The network as it came, in the order in which it runs."""

    @property
    def after(self) -> tuple[NetworkNode, ...]:
        """The folded network."""
        nodes: list[NetworkNode] = []
        moved: list[tuple[int, ...]] = []  # per node of `before`: what its readers now read
        sources: list[tuple[int, ...]] = []  # and what a carrier behind it does
        for node in self.before:
            inputs = tuple(dict.fromkeys(new for old in node.inputs for new in moved[old]))
            origin = tuple(dict.fromkeys(new for old in node.inputs for new in sources[old]))
            if node.state is State.CARRIER:
                inputs = origin
            sources.append(origin if node.state is State.MERGED else (len(nodes),))
            if node.state is State.MERGED:  # of what it read, only what a carrier makes is left
                states = (self.before[old].state for old in node.inputs)
                moved.append(
                    tuple(
                        dict.fromkeys(
                            new
                            for old, state in zip(node.inputs, states, strict=True)
                            if state in (State.CARRIER, State.MERGED)
                            for new in moved[old]
                        )
                    )
                )
                continue
            if node.state is State.REMOVED:
                sources[-1] = origin
                moved.append(inputs)
                continue
            moved.append((len(nodes),))
            nodes.append(node._replace(inputs=inputs))
        return tuple(nodes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without what is as usual; `after` follows from it."""
        return {"before": [_as_dict(node) for node in self.before]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Network:
        """The inverse of `to_dict`. Raises ValueError where a node reads one that comes later."""
        nodes: list[NetworkNode] = []
        for entry in data["before"]:
            inputs = tuple(entry.get("inputs", ()))
            if not all(0 <= number < len(nodes) for number in inputs):
                raise ValueError(f"{entry['name']!r} reads a node that does not come before it")
            state = State(entry.get("state", State.PLAIN))
            blocker, item = entry.get("blocker", False), entry.get("item")
            nodes.append(NetworkNode(entry["name"], entry["kind"], inputs, state, blocker, item))
        return cls(tuple(nodes))


def _as_dict(node: NetworkNode) -> dict[str, Any]:
    usual = NetworkNode._field_defaults
    fields = {
        name: value for name, value in node._asdict().items() if value != usual.get(name, ...)
    }
    return {name: list(value) if name == "inputs" else value for name, value in fields.items()}


def op_counts(nodes: Iterable[NetworkNode]) -> Counter[str]:
    """How many ops of each kind there are; the outside does not count."""
    return Counter(node.kind for node in nodes if node.kind not in (INPUT, OUTPUT))


def draw(graph: g.Graph, plan: Plan, items: Collection[str]) -> Network:
    """The drawing of a plan; `items` are the names that the report lists."""
    known = set(items)
    blockers = {
        obstacle.blocker
        for number, obstacle in plan.kept.items()
        if graph.ops[number].name in known and graph.ops[number].name != obstacle.blocker
    }
    nodes = [NetworkNode(name, INPUT, blocker=name in blockers) for _, name in graph.inputs]
    maker = {tensor: position for position, (tensor, _) in enumerate(graph.inputs)}
    parts: list[int] = []  # helpers that wait for the op they belong to
    last = len(graph.ops) - 1
    for number, op in enumerate(graph.ops):
        parts.append(number)
        if not op.kind and number < last and graph.ops[number + 1].name == op.name:
            continue
        nodes.append(_node(graph, plan, parts, maker, blockers, known))
        for part in parts:
            maker.update(dict.fromkeys(graph.ops[part].outputs, len(nodes) - 1))
        parts = []
    for tensor, name, _ in graph.outputs:
        source = maker.get(tensor)
        is_input = source is None or source < len(graph.inputs)  # its memory outlives the run
        if is_input and name not in blockers:
            continue
        inputs = () if source is None else (source,)
        nodes.append(NetworkNode(name, OUTPUT, inputs, blocker=name in blockers))
    return Network(tuple(nodes))


def _node(
    graph: g.Graph,
    plan: Plan,
    parts: list[int],
    maker: Mapping[int, int],
    blockers: Collection[str | None],
    items: Collection[str],
) -> NetworkNode:
    op = graph.ops[parts[-1]]
    read = [maker.get(tensor) for part in parts for tensor in graph.ops[part].inputs]
    inputs = tuple(dict.fromkeys(node for node in read if node is not None))
    kind, item = op.kind, None
    if isinstance(op.role, g.Step):
        kind = op.role.kind
        item = op.name if op.name in items else None
    state = _state(plan, parts)
    if state is State.KEPT and item is None:  # nobody asks about it
        state = State.PLAIN
    return NetworkNode(
        op.name,
        kind or type(op.role).__name__,
        inputs,
        state,
        op.name in blockers,
        item,
    )


def _state(plan: Plan, parts: list[int]) -> State:
    for part in parts:
        if part in plan.removed:
            return State.REMOVED
        if part in plan.kept:
            return State.KEPT
        if part in plan.clip:
            return State.BOUNDS
        if part in plan.linear or part in plan.affine:
            return State.EDITED
    return State.PLAIN
