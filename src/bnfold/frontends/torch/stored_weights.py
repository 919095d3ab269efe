"""Weights that an exported program computes of its constants alone: computed once, and stored.

A weight that is computed in each run (weight_norm, `scale * mask`, a slice of a larger one) can be
neither edited nor merged. Where nobody writes to what it is made of, it is the same in every run,
and its value can be a parameter of its own. Only weights beside an activation are stored; what may
be edited through what is made of it (a transposed matrix) stays, and so do casts, and what is made
of few values: somebody wanted those so. A program never holds more numbers than before, but for
vectors: a tensor that is stored takes the room of those that nobody reads any more.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram

from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.editor import Editor
from bnfold.frontends.torch.linear_ops import is_linear
from bnfold.frontends.torch.op_effects import keeps_all
from bnfold.frontends.torch.ops import aten_name, functional, op_name
from bnfold.frontends.torch.preserved_calls import promised
from bnfold.frontends.torch.read_program import held_tensors
from bnfold.frontends.torch.sweep import sweep
from bnfold.frontends.torch.tensor_facts import is_ordinary, memory_of

aten = torch.ops.aten


def with_weights_stored(
    program: ExportedProgram, written: Collection[str]
) -> ExportedProgram | None:
    """The program with such weights as parameters; None where there are none.

    `written` names the placeholders that a run writes to.
    """
    computed = _Computed(program, written)
    chosen = computed.affordable()
    if not chosen:
        return None
    editor = Editor(program, written)
    for first in chosen:
        content = computed.value(first)
        reader, node = next(computed.uses(first))
        new = editor.stored(_role(reader, content), editor.find(reader), content)
        for reader, node in computed.uses(first):
            editor.find(reader).replace_input_with(editor.find(node), new)
    for node in computed.nodes:
        if node.target is aten.detach_.default:  # of a copy: what nobody reads can go
            editor.find(node).target = aten.detach.default
    sweep(editor, [editor.find(node) for first in chosen for node in computed.alike[first]])
    return editor.finish()


def _role(reader: fx.Node, content: Tensor) -> str:
    """What the op that reads it would call it."""
    if not is_linear(op_name(reader.target)):
        return "constant"
    return "bias" if content.ndim == 1 else "weight"


class _Computed:
    """What a program computes of its constants alone."""

    def __init__(self, program: ExportedProgram, written: Collection[str]) -> None:
        self.tensors = _untouched(program, written)
        self.nodes = _constant_nodes(program.graph, self.tensors)
        """The nodes, in the graph's order, with the placeholders that they are made of."""
        self.alike = _alike(self.nodes)
        """Per node, those that compute the same: itself first, for it comes first."""
        self.promised = promised(program.module_call_graph)

    def uses(self, first: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Who reads one of these as a weight beside an activation, and which one."""
        for node in self.alike[first]:
            yield from ((user, node) for user in node.users if self._is_weight(node, user))

    def _is_weight(self, node: fx.Node, reader: fx.Node) -> bool:
        """Whether it is a weight there, or one number per channel, beside an activation."""
        if reader in self.nodes:
            return False
        name = functional(op_name(reader.target))
        is_step = is_batch_norm(name) or name in _ARITHMETIC
        return is_linear(name) or name == "einsum" or (is_step and _is_vector(node.meta["val"]))

    def affordable(self) -> list[fx.Node]:
        """Those that are to be stored."""
        chosen = [first for first in self.alike if self._is_wanted(first)]
        while True:
            going = {node for first in chosen for node in self.alike[first] if self._goes(node)}
            room = {root: self.tensors[root.name].numel() for root in self._freed(going)}
            paid = [first for first in chosen if self._pays(first, room)]
            if len(paid) == len(chosen):
                return chosen
            chosen = paid

    def _is_wanted(self, node: fx.Node) -> bool:
        made, roots = node.meta.get("val"), self.nodes[node]
        if node.op == "placeholder" or not isinstance(made, Tensor) or not roots:
            return False
        if not made.is_floating_point() or made.layout is not torch.strided:
            return False
        tensors = [self.tensors[root.name] for root in roots]
        if not all(_is_as_wide(tensor.dtype, made.dtype) for tensor in tensors):
            return False
        if any(same.name in self.promised for same in self.alike[node]):
            return False
        return next(self.uses(node), None) is not None and not self._is_editable(node)

    def _is_editable(self, node: fx.Node) -> bool:
        """Whether a parameter can be edited through what is made of it here."""
        part = node
        while part.op != "placeholder":
            if not keeps_all(part.target):
                return False
            (part,) = part.all_input_nodes
        parameter = self.tensors[part.name]
        lengths = sorted(_long_axes(parameter))
        is_same = lengths == sorted(_long_axes(node.meta["val"]))
        return is_same and (parameter.ndim <= 2 or _is_vector(parameter))

    def _goes(self, node: fx.Node) -> bool:
        """Whether nobody needs it to be computed any more."""
        return all(self._is_weight(node, user) for user in node.users)

    def _freed(self, going: Collection[fx.Node]) -> Iterator[fx.Node]:
        """The placeholders that nobody reads but for what goes."""
        needed: set[fx.Node] = set()
        for node in reversed(self.nodes):
            users = [user for user in node.users if user not in going]
            if node not in going and any(u in needed or u not in self.nodes for u in users):
                needed.add(node)
        return (node for node in self.nodes if node.op == "placeholder" and node not in needed)

    def _pays(self, node: fx.Node, room: dict[fx.Node, int]) -> bool:
        """Take the room of what it is made of; False where there is too little."""
        if _is_vector(node.meta["val"]):
            return True
        missing = node.meta["val"].numel()
        for root in self.nodes[node]:
            taken = min(missing, room.get(root, 0))
            room[root] = room.get(root, 0) - taken
            missing -= taken
        return not missing

    @torch.no_grad()
    def value(self, node: fx.Node) -> Tensor:
        """What is computed there in every run, in memory of its own."""
        needed, pending = set[fx.Node](), [node]
        while pending:
            part = pending.pop()
            if part not in needed:
                needed.add(part)
                pending += part.all_input_nodes
        values: dict[fx.Node, Any] = {}
        with torch.autocast(node.meta["val"].device.type, enabled=False):
            for part in filter(needed.__contains__, self.nodes):
                if part.op == "placeholder":
                    values[part] = self.tensors[part.name]
                    continue
                args, kwargs = fx.map_arg((part.args, part.kwargs), values.__getitem__)
                target = _OUT_OF_PLACE.get(part.target, part.target)
                assert callable(target)
                values[part] = target(*args, **kwargs)
        content: Tensor = values[node].detach().clone()
        return content


_ARITHMETIC = frozenset(
    ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide")
)
_OF_FEW_VALUES = frozenset(("sign", "sgn", "round"))
"""What makes weights of a few values, as binary and quantised ones are; they are to stay so."""
_OUT_OF_PLACE: Mapping[Any, Any] = {aten.detach_.default: aten.detach.default}
"""What is said to work in place, and changes no values."""


def _untouched(program: ExportedProgram, written: Collection[str]) -> dict[str, Tensor]:
    """The program's constants, by the name of their placeholder, without what is written to."""
    held = held_tensors(program)
    memory = {memory_of(held[name]) for name in written if name in held} | {None}
    return {
        name: tensor
        for name, tensor in held.items()
        if name not in written and is_ordinary(tensor) and memory_of(tensor) not in memory
    }


def _constant_nodes(
    graph: fx.Graph, tensors: Collection[str]
) -> dict[fx.Node, dict[fx.Node, None]]:
    found: dict[fx.Node, dict[fx.Node, None]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in tensors:
            found[node] = {node: None}
        elif _is_computation(node) and all(source in found for source in node.all_input_nodes):
            found[node] = {root: None for source in node.all_input_nodes for root in found[source]}
    for node in graph.nodes:
        for touched in _written(node):
            _forget(found, touched)
    return found


def _is_computation(node: fx.Node) -> bool:
    """Whether a node makes the same of the same, of a known size, and does nothing else."""
    if node.op != "call_function" or not _is_of_known_size(node.meta.get("val")):
        return False
    if node.target is operator.getitem:
        return True
    name = aten_name(node.target)
    if not name or is_batch_norm(name) or name in _OF_FEW_VALUES or "quantize" in name:
        return False
    is_drawn = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
    is_filled = not name.removeprefix("new_").startswith("empty")
    return is_filled and not is_drawn and not [*_written(node)]


def _is_of_known_size(declared: Any) -> bool:
    made = declared if isinstance(declared, tuple | list) else [declared]
    return all(
        isinstance(tensor, Tensor) and not any(isinstance(size, SymInt) for size in tensor.shape)
        for tensor in made
    )


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that a node writes to, or may write to as far as is known."""
    if node.op != "call_function" or node.target in (operator.getitem, *_OUT_OF_PLACE):
        return
    if not isinstance(node.target, torch._ops.OpOverload):
        yield from (source for source in node.all_input_nodes if source.op != "placeholder")
        return
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            sources: list[fx.Node] = []
            fx.map_arg(given, sources.append)
            yield from sources


def _forget(found: dict[fx.Node, Any], node: fx.Node) -> None:
    """Take out a node that is written to, and all that may share its memory or is made of that."""
    kin, pending = set[fx.Node](), deque([node])
    while pending:
        part = pending.popleft()
        if part in found and part not in kin:
            kin.add(part)
            pending += part.all_input_nodes
    pending += kin
    while pending:
        part = pending.popleft()
        if found.pop(part, None) is not None:
            pending += part.users


def _alike(nodes: Collection[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    firsts: dict[Any, fx.Node] = {}
    first_of: dict[fx.Node, fx.Node] = {}
    alike: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        given = fx.map_arg((node.args, node.kwargs), lambda source: first_of[source])
        key = (node.name,) if node.op == "placeholder" else (node.target, str(given))
        first = first_of[node] = firsts.setdefault(key, node)
        alike.setdefault(first, []).append(node)
    return alike


def _is_as_wide(root: torch.dtype, made: torch.dtype) -> bool:
    """Whether it is no cast, and not made of integers of few bits; masks and indices may be."""
    return root in (made, torch.bool, torch.int64)


def _is_vector(tensor: Tensor) -> bool:
    return len(_long_axes(tensor)) <= 1


def _long_axes(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length != 1]
