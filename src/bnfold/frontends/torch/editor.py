"""An exported program under construction: a new one, the old one untouched.

New constants become parameters (or buffers, for bounds) with names beside the weight they belong
to; nodes keep their names, so tools that follow them still find their way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)

from bnfold.frontends.torch.apply import parameter_like
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.ops import op_name
from bnfold.frontends.torch.preserved_calls import preserved
from bnfold.frontends.torch.recording import Event, Value
from bnfold.frontends.torch.runnable import UNFLATTENED

aten = torch.ops.aten


class Editor:
    """A program under construction."""

    def __init__(self, program: ExportedProgram, written: Collection[str]) -> None:
        self.program = program
        self.written = written
        """The names of the placeholders that a run writes to."""
        self.module = copy.copy(program.graph_module)
        nodes: dict[fx.Node, fx.Node] = {}
        graph = fx.Graph()
        graph._codegen = program.graph._codegen
        output = graph.graph_copy(program.graph, nodes)
        old_output = next(n for n in program.graph.nodes if n.op == "output")
        nodes[old_output] = graph.output(output)
        nodes[old_output].meta = dict(old_output.meta)
        _keep_names(graph, nodes)
        self.graph = graph
        self.nodes = nodes
        self.inputs: list[InputSpec] = list(program.graph_signature.input_specs)
        self.state, self.constants = self._tables()
        self.taken = self._taken()
        """The names that nothing new may have."""
        self.released: dict[fx.Node, None] = {}
        """What lost a reader that was taken out: perhaps its last one."""
        self.stand_ins: dict[fx.Node, fx.Node] = {}
        """What is read in place of a node that was taken out."""

    def _tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The program's tensors: shared with it, but for the memory that a run writes to."""
        tables = (self.program.state_dict, self.program.constants)
        targets = {spec.target for spec in self.inputs if spec.arg.name in self.written}
        memory = {
            _memory(table[target]) for table in tables for target in targets if target in table
        }
        memory.discard(None)
        memo: dict[int, Any] = {}  # what shares memory goes on sharing it
        state, constants = (
            {
                name: _own(content, memo) if _memory(content) in memory else content
                for name, content in table.items()
            }
            for table in tables
        )
        return state, constants

    def find(self, node: fx.Node) -> fx.Node:
        """The node of the new graph."""
        return self.nodes[node]

    def replace_tensor(self, old: Tensor, content: Tensor) -> None:
        """Give every name of a parameter new content."""
        for before, now in (
            (self.program.state_dict, self.state),
            (self.program.constants, self.constants),
        ):
            for name, tensor in before.items():
                if tensor is old:
                    now[name] = _like(old, content)

    def give(self, node: fx.Node, name: str, content: Tensor) -> None:
        """Set an argument that was None (or may not be edited where it is) to a new parameter."""
        schema = node.target._schema  # type: ignore[union-attr]
        names = [argument.name for argument in schema.arguments]
        position = names.index(name)
        beside = node.args[1] if len(node.args) > 1 else None
        new = self.born(beside, name, node, content)
        node.update_kwarg(name, new) if name in node.kwargs else self._set(node, position, new)

    def born(self, beside: Any, name: str, node: fx.Node, content: Tensor) -> fx.Node:
        """A new parameter for a node, named after another argument of it."""
        return self._placeholder(self._target(beside, name, node), content, InputKind.PARAMETER)

    def stored(self, name: str, node: fx.Node, content: Tensor) -> fx.Node:
        """A new parameter for a node, named after the module that the node came from."""
        stack = node.meta.get("nn_module_stack") or {"": ("", "")}
        path, _ = [*stack.values()][-1]
        is_module = path and path not in self.state and path not in self.constants
        target = self._free(f"{path}.{name}" if is_module else f"{node.name}_{name}")
        return self._placeholder(target, content, InputKind.PARAMETER)

    def restate(self, node: fx.Node) -> None:
        """Say anew what a constant looks like, whose parameter has another shape now."""
        if node.op == "placeholder":
            placeholders = [
                placeholder for placeholder in self.graph.nodes if placeholder.op == "placeholder"
            ]
            target = next(spec.target for spec in self.inputs if spec.arg.name == node.name)
            assert target is not None
            tensor = self.state[target] if target in self.state else self.constants[target]
            node.meta["val"] = self._fake(placeholders, tensor)
            return
        for source in node.all_input_nodes:
            self.restate(source)
        args = fx.map_arg(node.args, lambda source: source.meta["val"])
        kwargs = fx.map_arg(node.kwargs, lambda source: source.meta["val"])
        assert callable(node.target)
        node.meta["val"] = node.target(*args, **kwargs)

    def _set(self, node: fx.Node, position: int, new: fx.Node) -> None:
        schema = node.target._schema  # type: ignore[union-attr]
        args = list(node.args)
        while len(args) <= position:
            args.append(schema.arguments[len(args)].default_value)
        args[position] = new
        node.args = tuple(args)

    def rescale_clip(self, node: fx.Node, lower: Tensor | None, upper: Tensor | None) -> None:
        """max(x, lower), min(x, upper) in place of the activation."""
        clipped = node.args[0]
        assert isinstance(clipped, fx.Node)
        for bound, op, name in ((lower, aten.maximum, "lower"), (upper, aten.minimum, "upper")):
            if bound is None:
                continue
            target = self._free(f"{node.name}_{name}")
            constant = self._placeholder(target, bound, InputKind.BUFFER)
            with self.graph.inserting_before(node):
                made = self.graph.call_function(op.default, (clipped, constant))
            made.meta = dict(node.meta)
            clipped = made
        self._replace(node, clipped)

    def remove(self, node: fx.Node, source: fx.Node, *, copied: bool) -> None:
        """Let the readers of an affine step read its input, `source`."""
        results = node.meta.get("val")
        if copied:
            made: Any = results[0] if isinstance(results, tuple | list) else results
            with self.graph.inserting_before(node):
                fresh = self._copy(source, made, like=node)
            # It stands in the module in which the step stood; an input is in none.
            fresh.meta = {**node.meta, "val": made}
            source = fresh
        if isinstance(results, tuple | list):  # native_batch_norm and its statistics
            for user in list(node.users):
                self._replace(user, source)
            self._erase(node)
        else:
            self._replace(node, source)

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        """Take a node out and let its readers read another one."""
        node.replace_all_uses_with(by)
        self.stand_ins[node] = by
        self._erase(node)

    def _copy(self, source: fx.Node, made: Tensor, *, like: fx.Node) -> fx.Node:
        """A copy of what a step got, laid out as what it made, whatever the layout."""
        if not is_batch_norm(op_name(like.target)):
            return self.graph.call_function(aten.clone.default, (source,))
        if made.ndim > 3:  # a concat keeps channels_last, and nothing else: no clone does
            return self.graph.call_function(aten.cat.default, ([source], 1))
        layout: dict[str, Any] = {"memory_format": torch.contiguous_format}
        return self.graph.call_function(aten.clone.default, (source,), layout)

    def _erase(self, node: fx.Node) -> None:
        self.released |= dict.fromkeys(node.all_input_nodes)
        self.released.pop(node, None)
        self.graph.erase_node(node)

    def calls(self) -> list[ModuleCallEntry]:
        """The calls of modules that the program lists, as they are now."""
        names = {node.name: self._standing_in(node).name for node in self.stand_ins}
        return preserved(self.program.module_call_graph, self.graph, names)

    def _standing_in(self, node: fx.Node) -> fx.Node:
        while node in self.stand_ins:
            node = self.stand_ins[node]
        return node

    def finish(self) -> ExportedProgram:
        """Check and assemble the new program."""
        self.graph.lint()
        module = fx.GraphModule(self.program.graph_module, self.graph)
        module.meta = dict(self.program.graph_module.meta)
        module.meta.pop(UNFLATTENED, None)
        old = self.program.graph_signature
        outputs = copy.deepcopy(old.output_specs)
        final = next(node for node in self.graph.nodes if node.op == "output")
        for spec, node in zip(outputs, final.args[0], strict=True):
            if isinstance(spec.arg, TensorArgument) and isinstance(node, fx.Node):
                spec.arg.name = node.name
        signature = ExportGraphSignature(input_specs=self.inputs, output_specs=outputs)
        return ExportedProgram(
            root=module,
            graph=module.graph,
            graph_signature=signature,
            state_dict=self.state,
            range_constraints=dict(self.program.range_constraints),
            module_call_graph=self.calls(),
            example_inputs=self.program.example_inputs,
            constants=self.constants,
            verifiers=self.program.verifiers,
        )

    def _target(self, beside: Any, name: str, node: fx.Node) -> str:
        """`conv.bias` beside `conv.weight`, or a name made from the node."""
        for spec in self.inputs:
            if isinstance(beside, fx.Node) and spec.arg.name == beside.name and spec.target:
                module, _, _ = spec.target.rpartition(".")
                wanted = f"{module}.{name}" if module else name
                if wanted not in self.taken:
                    return wanted
        return self._free(f"{node.name}_{name}")

    def _free(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        return name

    def _taken(self) -> set[str]:
        """The names that attributes of modules made of the program have, and of what holds them."""
        targets = (str(node.target) for node in self.graph.nodes if node.op == "get_attr")
        calls = (entry.fqn for entry in self.program.module_call_graph)
        names = chain(self.state, self.constants, targets, calls)
        return {part for name in names for part in accumulate(name.split("."), "{}.{}".format)}

    def _placeholder(self, target: str, content: Tensor, kind: InputKind) -> fx.Node:
        """A new lifted input behind the last one of its kind."""
        self.taken.add(target)
        self.state[target] = nn.Parameter(content) if kind is InputKind.PARAMETER else content
        before = [spec for spec in self.inputs if spec.kind is kind]
        position = self.inputs.index(before[-1]) + 1 if before else self._start_of(kind)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        short = "p" if kind is InputKind.PARAMETER else "b"
        name = f"{short}_{target.replace('.', '_')}"
        anchor = placeholders[position] if position < len(placeholders) else None
        first_op = next(node for node in self.graph.nodes if node.op != "placeholder")
        with self.graph.inserting_before(anchor or first_op):
            node = self.graph.placeholder(name)
        node.target = node.name  # another input may have that name; the code is made of targets
        node.meta["val"] = self._fake(placeholders, self.state[target])
        persistent = None if kind is InputKind.PARAMETER else True
        argument = TensorArgument(name=node.name)
        self.inputs.insert(position, InputSpec(kind, argument, target, persistent))
        return node

    def _start_of(self, kind: InputKind) -> int:
        """Parameters come first, then buffers, then the rest (tokens stay in front)."""
        ahead = {InputKind.TOKEN}
        if kind is InputKind.BUFFER:
            ahead.add(InputKind.PARAMETER)
        kinds = [spec.kind in ahead for spec in self.inputs]
        return len(kinds) - kinds[::-1].index(True) if True in kinds else 0

    def _fake(self, placeholders: list[fx.Node], tensor: Tensor) -> Any:
        for node in placeholders:
            mode = getattr(node.meta.get("val"), "fake_mode", None)
            if mode is not None:
                return mode.from_tensor(tensor, static_shapes=True)
        return tensor.to("meta")


def _keep_names(graph: fx.Graph, nodes: dict[fx.Node, fx.Node]) -> None:
    """Give the copies the names of their originals, by which the signature finds them.

    A copied graph avoids the names of Python's builtins, which torch.export does not: the argument
    of nn.Sequential is called `input`.
    """
    for old, new in nodes.items():
        if new.name != old.name:
            new.name = old.name
            graph._graph_namespace._used_names.add(old.name)


def _own(content: Any, memo: dict[int, Any]) -> Any:
    """A copy; a buffer that a run has written to may hang on a graph for gradients."""
    is_made = isinstance(content, Tensor) and not content.is_leaf
    return copy.deepcopy(content.detach() if is_made else content, memo)


def _memory(content: Any) -> int | None:
    """A number for the memory that a tensor lives in; None for all else."""
    if not isinstance(content, Tensor):
        return None
    try:
        return int(content.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse
        return id(content)


def _like(old: Tensor, content: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return parameter_like(old, content)
    return content


def argument_with(event: Event, node: fx.Node, is_meant: Callable[[Value], bool]) -> fx.Node | None:
    """The argument of a node that holds the value which is meant."""
    names = event.kwargs.keys() & node.kwargs.keys()
    given = [
        *zip(event.args, node.args, strict=False),
        *((event.kwargs[name], node.kwargs[name]) for name in names),
    ]
    for held, argument in given:
        if isinstance(held, Value) and isinstance(argument, fx.Node) and is_meant(held):
            return argument
    return None
