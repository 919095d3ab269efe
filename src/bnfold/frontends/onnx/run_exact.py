"""Run a model in float64, node by node: every floating-point tensor is float64.

Heavy operators are PyTorch's (`run_ops`), the others those of the onnx package's reference
evaluator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bnfold.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "PyTorch") from error

from bnfold.frontends.onnx.nodes import Node, free_names
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs
from bnfold.frontends.onnx.run_graph import RunGraph, not_exact_where_it_raises, show
from bnfold.frontends.onnx.run_loop import Loop
from bnfold.frontends.onnx.run_operands import NotHereError
from bnfold.frontends.onnx.run_ops import NO_REFERENCE, TABLE
from bnfold.frontends.onnx.run_outputs import to_outputs
from bnfold.frontends.onnx.run_rounding import draw_inside
from bnfold.frontends.onnx.tensors import FLOATS
from bnfold.verify.runner import Array, NotExactError, Output, Watch


class ExactModel(RunGraph):
    """A model ready to run in float64; see `Evaluation`."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model)
        self._evaluators: dict[tuple[int, int | None], tuple[ReferenceEvaluator, list[str]]] = {}

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`. Raises NotExactError."""
        values = {name: _widened(array) for name, array in zip(self.inputs, inputs, strict=True)}
        for node in self.network.nodes:
            with not_exact_where_it_raises(node):
                results = self._node(node, values, draw)
                if node.outputs[0] not in self.live and (dtype := self._stored_as(node)):
                    results = [results[0].to(dtype).to(torch.float64)]
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result
                    if watch is not None and name in self.live:
                        show(watch, name, node.op, _array(result))
            for name in self.last.get(node.index, ()):
                values.pop(name, None)
        outputs = [(name, self._value(name, values, None)) for name in self.network.outputs]
        return [
            output for name, value in outputs for output in to_outputs(name, _without_torch(value))
        ]

    def _value(self, name: str, values: Mapping[str, Any], draw: int | None) -> Any:
        if name in values:
            return values[name]
        array, kind = self.constant(name)
        return _widened(self.drawn(name, array, kind, draw))

    # ---------------------------------------------------------------- one node

    def _node(self, node: Node, values: Mapping[str, Any], draw: int | None) -> Sequence[Any]:
        operands = [self._value(name, values, draw) if name else None for name in node.inputs]
        own = TABLE.get(node.op)
        if own is not None and all(x is None or isinstance(x, torch.Tensor) for x in operands):
            try:
                return [own(node, operands, self.network.opset)]
            except NotHereError:
                pass
        if node.op in NO_REFERENCE:
            raise NotExactError(f"this form of {node.op} ({node.name}) is not known")
        return self._by_reference(node, operands, values, draw)

    def _by_reference(
        self, node: Node, operands: Sequence[Any], values: Mapping[str, Any], draw: int | None
    ) -> Sequence[Any]:
        if node.op == "Cast" and node.integer("to") in FLOATS:
            return [_given(operands[0]).to(torch.float64)]
        if node.op == "Constant":
            return [_widened(self.drawn(node.outputs[0], *self.constant_node(node), draw))]
        evaluator, outer = self._evaluator(node, draw)
        feeds = {n: _array(x) for n, x in zip(node.inputs, operands, strict=True) if n}
        feeds |= {name: _array(self._value(name, values, draw)) for name in outer}
        np.random.seed(0)  # what the evaluator draws from, if a node asks
        with np.errstate(all="ignore"):
            results = evaluator.run(None, feeds)
        named = dict(zip([name for name in node.outputs if name], results, strict=True))
        return [_widened(named[name]) if name else None for name in node.outputs]

    def _stored_as(self, node: Node) -> torch.dtype | None:
        """In which dtype a constant is that a node makes of another one; None as computed."""
        if node.op == "Cast":
            return _STORED.get(node.integer("to"))
        if node.op == "DequantizeLinear":
            scale = self._initializers.get(node.input(1))
            own = 0 if scale is None else scale.data_type
            return _STORED.get(node.integer("output_dtype") or own)
        return None

    def _evaluator(self, node: Node, draw: int | None) -> tuple[ReferenceEvaluator, list[str]]:
        subgraphs = [g for a in node.proto.attribute for g in inner_graphs(a)]
        calls = {f"{function.domain}::{function.name}" for function in self.model.proto.functions}
        if not subgraphs and node.op not in calls:
            draw = None  # it holds no weights itself
        known = self._evaluators.get((node.index, draw))
        if known is None:
            outer = sorted(set().union(*(free_names(graph) for graph in subgraphs)))
            names = list(dict.fromkeys([*(n for n in node.inputs if n), *outer]))
            proto, functions = NodeProto(), [FunctionProto() for _ in self.model.proto.functions]
            proto.CopyFrom(node.proto)
            for function, held in zip(functions, self.model.proto.functions, strict=True):
                function.CopyFrom(held)
            if draw is not None:
                for part in [g for a in proto.attribute for g in inner_graphs(a)]:
                    draw_inside(part, calls, draw)
                for function in functions:
                    draw_inside(function, calls, draw)
            graph = helper.make_graph(
                [proto],
                "one",
                [helper.make_empty_tensor_value_info(name) for name in names],
                [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
            )
            model = helper.make_model(
                graph, opset_imports=list(self.model.proto.opset_import), functions=functions
            )
            evaluator = _in_float64(ReferenceEvaluator(model, new_ops=[Loop]))
            known = self._evaluators[node.index, draw] = (evaluator, outer)
        return known


_STORED: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Constants of these types are rounded; what is computed of the inputs is not, here."""


def _in_float64(evaluator: ReferenceEvaluator) -> ReferenceEvaluator:
    """With attributes that are Python's numbers: those of float32 make NumPy compute in that."""
    for run in evaluator.rt_nodes_:
        for name in run.attributes_names_:
            if isinstance(value := getattr(run, name), np.float32):
                setattr(run, name, float(value))
    return evaluator


def _given(operand: Any) -> Any:
    return operand


def _widened(value: Any) -> Any:
    """A tensor, in float64 if it is one of floats; other things as they are."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float64) if value.is_floating_point() else value
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "fV" and array.dtype != np.float64:
        array = array.astype(np.float64)
    if array.dtype.kind not in "fiub" or array.dtype in (np.uint16, np.uint32, np.uint64):
        return array
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    return torch.from_numpy(array)


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _without_torch(value: Any) -> Any:
    """The same without PyTorch."""
    if isinstance(value, list | tuple):
        return [_without_torch(part) for part in value]
    return _array(value)
