"""Record an exported program: run once on its example inputs, node by node.

The run shows shapes and shared memory. A program without example inputs is run on zeros of the
shapes that it declares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from bnfold.errors import BnfoldError, ExampleInputError, UnsupportedModelError
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.lift_aten import is_known
from bnfold.frontends.torch.linear_ops import is_linear
from bnfold.frontends.torch.op_effects import FACTORIES
from bnfold.frontends.torch.ops import aten_name, op_name
from bnfold.frontends.torch.record import Recorder
from bnfold.frontends.torch.recording import Call, Recording, Value
from bnfold.frontends.torch.symbolic import open_nodes
from bnfold.frontends.torch.tensor_facts import forget


def lifted_tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """The program's parameters and buffers, by the name of their placeholder."""
    return _tensors_of(program, (InputKind.PARAMETER, InputKind.BUFFER))


def held_tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """The same, with the constants that are neither."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return _tensors_of(program, kinds)


def _tensors_of(program: ExportedProgram, kinds: Collection[InputKind]) -> dict[str, Tensor]:
    tensors = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind not in kinds or spec.target is None:
            continue
        tensor = program.state_dict.get(spec.target)
        if tensor is None:
            tensor = program.constants.get(spec.target)
        if isinstance(tensor, Tensor):
            tensors[spec.arg.name] = tensor
    return tensors


def read_program(program: ExportedProgram, tensors: dict[str, Tensor]) -> Recording:
    """Run the graph and record it, node by node.

    What a program writes to, itself or as its signature says, holds something else in each run. If
    a run shows more of that, the graph is run again with its content taken for unknown.
    """
    state = _mutated(program)
    while True:
        recording = _record(program, tensors, state)
        if recording.written <= state:
            return recording
        state |= recording.written


def _mutated(program: ExportedProgram) -> frozenset[str]:
    """The names of the placeholders that the signature says are written to after each run."""
    targets = {
        spec.target
        for spec in program.graph_signature.output_specs
        if spec.target is not None and "MUTATION" in spec.kind.name
    }
    return frozenset(
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.target in targets and spec.kind is not InputKind.USER_INPUT
    )


def _record(
    program: ExportedProgram, tensors: dict[str, Tensor], state: frozenset[str]
) -> Recording:
    recording = Recording(owned={id(tensor): tensor for tensor in tensors.values()})
    recorder = Recorder(recording, {})
    inputs = user_inputs(program)
    recording.open_nodes = open_nodes(program.graph, inputs.keys(), FACTORIES)
    constants = _tensors_of(program, (InputKind.CONSTANT_TENSOR,))
    held = {**tensors, **{name: tensor.clone() for name, tensor in constants.items()}}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            interpreter = _Interpreter(program, recorder, held, inputs, state)
            result = _run(interpreter, program)
            recording.roots.append(recorder.ledger.call)
            _note_outputs(recorder, result, [*inputs.values()])
            recording.written = frozenset(
                name
                for name, tensor in held.items()
                if recorder.values.handle_of(tensor) is not None
            )
    finally:
        with torch.no_grad():
            recorder.values.undo_writes()
        forget([*inputs.values(), *held.values()])
    return recording


def _run(interpreter: fx.Interpreter, program: ExportedProgram) -> Any:
    """What the program returns. Raises ExampleInputError if it raises."""
    try:
        return interpreter.run()
    except BnfoldError:
        raise
    except Exception as error:
        own, _, _ = str(error).partition("\n\nWhile executing")  # which node it was, by torch.fx
        error.args = (own,)
        step = "export it again with example inputs that it takes"
        raise ExampleInputError("the program", error, step) from error


def _note_outputs(recorder: Recorder, result: Any, inputs: Iterable[Any]) -> None:
    """What is returned is read by the user, and so is memory that outlives the run."""
    recording = recorder.recording
    for position, leaf in enumerate(pytree.tree_leaves(result)):
        if not isinstance(leaf, Tensor):
            continue
        value = recorder.values.read(leaf)
        if isinstance(value, Value):
            recording.outputs.append((value, f"output {position}"))
            recording.persistent.add(value.storage)
        else:
            recorder.ledger.note_other_use(value.tensor, value.origin)  # it is to stay what it is
    kept = [tensor for tensor, _ in recorder.values.tainted.values()]
    for leaf in (*inputs, *kept):
        held = recorder.values.read(leaf) if isinstance(leaf, Tensor) else None
        if isinstance(held, Value) and held.storage in recording.persistent:
            recording.outputs.append((held, "memory that outlives the run"))


def user_inputs(program: ExportedProgram) -> dict[str, Any]:
    """Example inputs by the name of their placeholder."""
    names = [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]
    if program.example_inputs is not None:
        leaves = pytree.tree_leaves(program.example_inputs)
        if len(leaves) == len(names):
            copied = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return dict(zip(names, copied, strict=True))
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {name: _zeros(nodes[name]) for name in names}


def _zeros(node: fx.Node) -> Any:
    declared = node.meta.get("val")
    if not isinstance(declared, Tensor):
        return declared
    hints = [_hint(length) for length in declared.shape]
    shape = [length for length in hints if length is not None]
    if len(shape) < len(hints):
        raise UnsupportedModelError(
            f"the program has no example inputs, and the shape of its input {node.name} is open",
            "export it again with torch.export.export, which keeps the example inputs",
        )
    return torch.zeros(shape, dtype=declared.dtype, device=declared.device)


def _hint(length: Any) -> int | None:
    """A length, or what it was for torch.export; as an int it would be that for good."""
    if not isinstance(length, SymInt):
        return int(length)
    return int(length.node.hint) if length.node.has_hint() else None


class _Interpreter(fx.Interpreter):
    """Runs the graph; each node is a call in the recording."""

    def __init__(
        self,
        program: ExportedProgram,
        recorder: Recorder,
        tensors: dict[str, Any],
        inputs: dict[str, Any],
        state: Collection[str],
    ) -> None:
        super().__init__(program.graph_module)
        self.state = state
        self.recorder = recorder
        self.tensors = tensors
        self.inputs = inputs
        self.names = node_names(program.graph)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The model's own tensor, tracked if it is written to, or a tracked example input."""
        name = str(target)
        if name in self.tensors:
            if name in self.state:
                self.recorder.values.track_state(self.tensors[name])
            return self.tensors[name]
        value = self.inputs.get(name)
        if isinstance(value, Tensor):
            self.recorder.values.track_input(value, f"input {name}")
        return value

    def run_node(self, n: fx.Node) -> Any:
        """Each node is a call of its own."""
        if n.op != "call_function":
            return super().run_node(n)
        ledger = self.recorder.ledger
        outer = ledger.call
        call = Call(None, self.names[n], outer, node=n)
        outer.items.append(call)
        ledger.call = call
        try:
            return super().run_node(n)
        finally:
            ledger.call = outer

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Record ops of the tables as they are, and others by what they are made of."""
        if not isinstance(target, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
            return target(*args, **kwargs)  # arithmetic with sizes, getitem
        if not isinstance(target, torch._ops.OpOverload):
            return self._higher_order(target, tuple(args), dict(kwargs))
        if aten_name(target) == "_assert_tensor_metadata":  # about dtype: no fold changes it
            return target(*args, **kwargs)
        name = op_name(target)
        if not (is_known(name) or is_linear(name) or is_batch_norm(name)):
            with self.recorder:
                return target(*args, **kwargs)
        name = self.recorder.ledger.call.name
        result = self.recorder.run(target, tuple(args), dict(kwargs), name=name, renames=True)
        written = isinstance(result, Tensor) and any(result is argument for argument in args)
        if written and self.recorder.values.handle_of(result) is not None:
            return self.recorder.renamed(result)
        return result

    def _higher_order(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Control flow and the like: one op, of which only what it writes to is found out."""
        written = _written_inside(target, args, kwargs)
        return self.recorder.run(
            target, args, kwargs, name=self.recorder.ledger.call.name, written=written
        )


def _written_inside(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an op made of graphs writes to: a run on copies shows it."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    graphs = (leaf for leaf in leaves if isinstance(leaf, fx.GraphModule))
    if not any(_has_writes(graph) for graph in graphs):
        return []
    copied = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    before = [leaf._version if isinstance(leaf, Tensor) else None for leaf in copied]
    copied_args, copied_kwargs = pytree.tree_unflatten(copied, spec)
    target(*copied_args, **copied_kwargs)
    return [
        leaf
        for leaf, twin, version in zip(leaves, copied, before, strict=True)
        if isinstance(leaf, Tensor) and twin._version != version
    ]


def _has_writes(module: fx.GraphModule) -> bool:
    """Whether an op in it, or in a graph inside it, works in place."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for part in module.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    )


def node_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """What to call each node: the module it came from, where that names exactly one node."""
    names: dict[fx.Node, str] = {}
    paths: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        names[node] = node.name
        stack = node.meta.get("nn_module_stack")
        if stack and node.op == "call_function":
            path, _ = list(stack.values())[-1]
            paths.setdefault(str(path), []).append(node)
    for path, nodes in paths.items():
        if len(nodes) == 1 and path:
            names[nodes[0]] = path
    return names
