"""What it takes to run a model node by node, whoever does the arithmetic: `run_exact`, `run_numpy`.

Constants are read when a node asks for them and dropped after it, values after their last reader,
so a run takes the memory of its largest layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from onnx import TensorProto

from bnfold.frontends.onnx.nodes import Network, Node, free_names, read_network
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs
from bnfold.frontends.onnx.run_rounding import rounded_again, weight_names
from bnfold.frontends.onnx.tensors import FLOATS, to_array
from bnfold.verify.runner import Array, NotExactError, Watch


class RunGraph:
    """A model's main graph: its constants, and how long its values are needed."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.network: Network = read_network(model.name, model.proto)
        self._initializers = {tensor.name: tensor for tensor in model.proto.graph.initializer}
        self.inputs = [name for name in self.network.inputs if name not in self._initializers]
        """What the caller gives: initializers that may be overridden are left as they are."""
        self._weights = weight_names(self.network)
        self.last = self._last_readers()
        """Per node, the values that nobody reads after it."""
        self.live = self._depending()
        """The values that depend on the inputs; the others are weights."""

    def constant(self, name: str) -> tuple[Array, int]:
        """An initializer and its element type. Raises NotExactError."""
        tensor = self._initializers.get(name)
        if tensor is None:
            raise NotExactError(f"nothing known makes {name!r}")
        return to_array(tensor, self.model.tensor_data.get(name)), tensor.data_type

    def constant_node(self, node: Node) -> tuple[Array, int]:
        """What a Constant holds, and its element type. Raises NotExactError."""
        tensor = node.attribute("value")
        if isinstance(tensor, TensorProto):
            return to_array(tensor, None), tensor.data_type
        for name in ("value_float", "value_floats", "value_int", "value_ints"):
            value = node.attribute(name)
            if value is not None:
                dtype = np.float64 if "float" in name else np.int64
                return np.asarray(value, dtype=dtype), TensorProto.UNDEFINED
        raise NotExactError(f"constant {node.name} holds no numbers")

    def drawn(self, name: str, array: Array, kind: int, draw: int | None) -> Array:
        """The array, rounded once more at random if it is a weight."""
        if draw is None or not self.is_weight(name, kind):
            return array
        return rounded_again(name, array, kind, draw)

    def is_weight(self, name: str, kind: int) -> bool:
        """Whether a fold may have rounded this constant."""
        return kind in FLOATS and name in self._weights

    def _last_readers(self) -> dict[int, list[str]]:
        last: dict[str, int] = {}
        for node in self.network.nodes:
            inner = [g for a in node.proto.attribute for g in inner_graphs(a)]
            for name in {*node.inputs, *node.outputs, *(n for g in inner for n in free_names(g))}:
                last[name] = node.index
        read_last: dict[int, list[str]] = {}
        for name, index in last.items():
            if name and name not in self.network.outputs:
                read_last.setdefault(index, []).append(name)
        return read_last

    def _depending(self) -> set[str]:
        live = set(self.inputs)
        for node in self.network.nodes:
            inner = [g for a in node.proto.attribute for g in inner_graphs(a)]
            read = {*node.inputs, *(name for graph in inner for name in free_names(graph))}
            if not live.isdisjoint(read):
                live.update(node.outputs)
        return live


@contextmanager
def not_exact_where_it_raises(node: Node) -> Iterator[None]:
    """Whatever a node raises says that it is not run here."""
    try:
        yield
    except NotExactError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise NotExactError(f"{node.op} {node.name} does not run ({text})") from error


def show(watch: Watch, name: str, op: str, array: object) -> None:
    """Tell the watch of a tensor of floats."""
    if isinstance(array, np.ndarray) and array.dtype.kind == "f":
        watch(name, op, array.shape, lambda places: array.reshape(-1).take(places))
