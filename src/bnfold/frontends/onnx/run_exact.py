"""Run a model in float64, node by node: every floating-point tensor is float64.

Heavy operators are PyTorch's (`run_ops`), the others those of the onnx package's reference
evaluator. Constants are read when a node asks for them and dropped after it, values after their
last reader, so a run takes the memory of its largest layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bnfold.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "PyTorch") from error

from bnfold.frontends.onnx.nodes import Network, Node, free_names, read_network
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs
from bnfold.frontends.onnx.run_ops import NO_REFERENCE, TABLE, NotHereError
from bnfold.frontends.onnx.run_values import to_outputs
from bnfold.frontends.onnx.run_weights import rounded_again, weight_names
from bnfold.frontends.onnx.tensors import FLOATS, to_array
from bnfold.verify.runner import Array, NotExactError, Output, Watch


class ExactModel:
    """A model ready to run in float64; see `Evaluation`."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.network: Network = read_network(model.name, model.proto)
        self._initializers = self._constants()
        self._evaluators: dict[int, tuple[ReferenceEvaluator, list[str]]] = {}
        self._rounded = weight_names(self.network)
        self._last = self._last_readers()
        self._live = self._depending()

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`. Raises NotExactError."""
        values: dict[str, Any] = {}
        names = [name for name in self.network.inputs if name not in self._defaults()]
        for name, array in zip(names, inputs, strict=True):
            values[name] = _widened(array)
        for node in self.network.nodes:
            try:
                results = self._node(node, values, draw)
            except NotExactError:
                raise
            except Exception as error:
                text = " ".join(str(error).split())[:200]
                raise NotExactError(f"{node.op} {node.name} does not run ({text})") from error
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result
                    if name in self._live:
                        _show(watch, name, node.op, result)
            for name in self._last.get(node.index, ()):
                values.pop(name, None)
        found = [(name, self._value(name, values, None)) for name in self.network.outputs]
        return [output for name, value in found for output in to_outputs(name, _plain(value))]

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
            return [_widened(self._constant_node(node, draw))]
        evaluator, outer = self._evaluator(node)
        feeds = {n: _array(x) for n, x in zip(node.inputs, operands, strict=True) if n}
        feeds |= {name: _array(self._value(name, values, draw)) for name in outer}
        np.random.seed(0)  # what the evaluator draws from, if a node asks
        with np.errstate(all="ignore"):
            results = evaluator.run(None, feeds)
        named = dict(zip([name for name in node.outputs if name], results, strict=True))
        return [_widened(named[name]) if name else None for name in node.outputs]

    def _evaluator(self, node: Node) -> tuple[ReferenceEvaluator, list[str]]:
        known = self._evaluators.get(node.index)
        if known is None:
            subgraphs = [g for a in node.proto.attribute for g in inner_graphs(a)]
            outer = sorted(set().union(*(free_names(graph) for graph in subgraphs)))
            names = list(dict.fromkeys([*(n for n in node.inputs if n), *outer]))
            graph = helper.make_graph(
                [node.proto],
                "one",
                [helper.make_empty_tensor_value_info(name) for name in names],
                [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
            )
            proto = helper.make_model(
                graph,
                opset_imports=list(self.model.proto.opset_import),
                functions=list(self.model.proto.functions),
            )
            known = self._evaluators[node.index] = (ReferenceEvaluator(proto), outer)
        return known

    # ---------------------------------------------------------------- constants

    def _value(self, name: str, values: Mapping[str, Any], draw: int | None) -> Any:
        if name in values:
            return values[name]
        tensor = self._initializers.get(name)
        if tensor is None:
            raise NotExactError(f"nothing known makes {name!r}")
        array = to_array(tensor, self.model.bulk.get(name))
        return _widened(self._drawn(name, array, tensor.data_type, draw))

    def _constant_node(self, node: Node, draw: int | None) -> Array:
        tensor = node.attribute("value")
        if isinstance(tensor, TensorProto):
            array = to_array(tensor, None)
            return self._drawn(node.outputs[0], array, tensor.data_type, draw)
        for name in ("value_float", "value_floats", "value_int", "value_ints"):
            found = node.attribute(name)
            if found is not None:
                return np.asarray(found, dtype=np.float64 if "float" in name else np.int64)
        raise NotExactError(f"constant {node.name} holds no numbers")

    def _drawn(self, name: str, array: NDArray[Any], kind: int, draw: int | None) -> Array:
        """The array, rounded once more at random if it is a weight."""
        if draw is None or kind not in FLOATS or name not in self._rounded:
            return array
        return rounded_again(name, array, kind, draw)

    def _constants(self) -> dict[str, TensorProto]:
        return {**self.network.initializers, **self._defaults()}

    def _defaults(self) -> dict[str, TensorProto]:
        """Initializers that the caller may override, which nobody does here."""
        return {
            tensor.name: tensor
            for tensor in self.model.proto.graph.initializer
            if tensor.name in self.network.inputs
        }

    def _last_readers(self) -> dict[int, list[str]]:
        """Per node, the values that nobody reads after it."""
        last: dict[str, int] = {}
        for node in self.network.nodes:
            inner = [g for a in node.proto.attribute for g in inner_graphs(a)]
            for name in {*node.inputs, *node.outputs, *(n for g in inner for n in free_names(g))}:
                last[name] = node.index
        found: dict[int, list[str]] = {}
        for name, index in last.items():
            if name and name not in self.network.outputs:
                found.setdefault(index, []).append(name)
        return found

    def _depending(self) -> set[str]:
        """The values that depend on the inputs; what is computed from weights alone is a weight."""
        live = {name for name in self.network.inputs if name not in self._defaults()}
        for node in self.network.nodes:
            inner = [g for a in node.proto.attribute for g in inner_graphs(a)]
            read = {*node.inputs, *(name for graph in inner for name in free_names(graph))}
            if not live.isdisjoint(read):
                live.update(node.outputs)
        return live


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


def _plain(value: Any) -> Any:
    """The same without PyTorch."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _array(value)


def _show(watch: Watch | None, name: str, op: str, result: Any) -> None:
    if watch is None or not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return
    watch(
        name,
        op,
        tuple(result.shape),
        lambda places: result.reshape(-1).numpy().take(places),
    )
