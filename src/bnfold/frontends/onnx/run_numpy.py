"""Run a model by NumPy alone, in float64 or float32: usual convolutional networks.

PyTorch takes longer to import than such a network takes to run on a small image. What is not in the
table, or has an attribute that is not read here, is not run at all: whoever asked goes to
`run_exact`.

On an image smaller than the one declared a part of the network may see nothing: a pooling larger
than what is left makes no windows, a dilated kernel reads the border alone. Nothing is known about
weights there, so that such a run is refused, too.

Sources: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.frontends.onnx.nodes import Network, Node
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.run_graph import RunGraph, not_exact_where_it_raises, show
from bnfold.frontends.onnx.run_numpy_ops import PRODUCTS, TABLE, check_reach
from bnfold.frontends.onnx.run_outputs import to_outputs
from bnfold.frontends.onnx.run_rounding import rounded_again
from bnfold.verify.runner import Lane, NotExactError, Output

Array = NDArray[Any]
_OPSET = 13
"""Before that some of these operators meant something else."""


class NumpyModel(RunGraph):
    """A model ready to run. Raises NotExactError where it is not for NumPy."""

    def __init__(self, model: OnnxModel, is_stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(model)
        _check(self.network)
        self._is_stopped = is_stopped
        self._scratch: dict[tuple[int, str], Array] = {}

    def run(self, inputs: Sequence[Array], lanes: Sequence[Lane]) -> list[list[Output]]:
        """The outputs in each lane; every weight is read once for all. Raises NotExactError."""
        values: dict[str, list[Array]] = {}
        for name, array in zip(self.inputs, inputs, strict=True):
            values[name] = _in_lanes(array, lanes)
        is_smaller = not self._are_declared(inputs)
        for node in self.network.nodes:
            if self._is_stopped():
                raise NotExactError("somebody stopped it")
            with np.errstate(all="ignore"), not_exact_where_it_raises(node):
                results = self._node(node, values, lanes, is_smaller=is_smaller)
            name = node.outputs[0]
            if not results[0].size:
                raise NotExactError(f"{node.name} makes nothing")
            values[name] = results
            for lane, result in zip(lanes, results, strict=True):
                if lane.watch is not None and name in self.live:
                    show(lane.watch, name, node.op, result)
            for name in self.last.get(node.index, ()):
                values.pop(name, None)
        outputs = [
            (name, values.get(name) or self._weight(name, lanes)) for name in self.network.outputs
        ]
        return [
            [output for name, value in outputs for output in to_outputs(name, value[number])]
            for number in range(len(lanes))
        ]

    def _are_declared(self, inputs: Sequence[Array]) -> bool:
        """Whether these are the only sizes that the model takes."""
        declared = [self.network.inputs[name].tensor_type.shape.dim for name in self.inputs]
        return all(
            tuple(dim.dim_value for dim in dims) == array.shape
            for dims, array in zip(declared, inputs, strict=True)
        )

    def _node(
        self,
        node: Node,
        values: Mapping[str, list[Array]],
        lanes: Sequence[Lane],
        *,
        is_smaller: bool,
    ) -> list[Array]:
        if node.op == "Constant":
            return self._rounded(node.outputs[0], *self.constant_node(node), lanes)
        operands: list[list[Array]] = []
        for name in node.inputs:
            known = values.get(name)
            if known is None:
                for_once = bool(operands) and node.op in PRODUCTS
                known = self._weight(name, lanes, for_once=for_once)
            operands.append(known)
        operator = TABLE[node.op][0]
        results = [
            operator(node, [each[number] for each in operands]) for number in range(len(lanes))
        ]
        if is_smaller and node.op == "Conv":
            x, weight = operands[:2]
            check_reach(node, x[0].shape[2:], weight[0].shape[2:], results[0].shape[2:])
        return results

    def _weight(self, name: str, lanes: Sequence[Lane], *, for_once: bool = False) -> list[Array]:
        return self._rounded(name, *self.constant(name), lanes, for_once=for_once)

    def _rounded(
        self, name: str, array: Array, kind: int, lanes: Sequence[Lane], *, for_once: bool = False
    ) -> list[Array]:
        """A constant in each lane; what is needed `for_once` lies where the next one will."""
        if array.dtype.kind != "f":
            return [array] * len(lanes)
        for_once = for_once and array.size >= _LARGE
        is_weight = self.is_weight(name, kind)
        plain: dict[str, Array] = {}
        rounded = []
        for number, lane in enumerate(lanes):
            if lane.draw is None or not is_weight:
                if lane.dtype not in plain:
                    plain[lane.dtype] = self._cast(array, lane.dtype, for_once=for_once)
                rounded.append(plain[lane.dtype])
                continue
            out = self._room(number, array, lane.dtype, for_once=for_once)
            rounded.append(
                rounded_again(name, array, kind, lane.draw, enlarged=lane.enlarged, out=out)
            )
        return rounded

    def _cast(self, array: Array, dtype: str, *, for_once: bool) -> Array:
        if array.dtype == dtype:
            return array
        made = self._room(-1, array, dtype, for_once=for_once)
        np.copyto(made, array)
        return made

    def _room(self, number: int, like: Array, dtype: str, *, for_once: bool) -> Array:
        """An array to be filled: fresh memory takes longer to get than to fill."""
        if not for_once:
            return np.empty(like.shape, dtype)
        held = self._scratch.get((number, dtype))
        if held is None or held.size < like.size:
            held = self._scratch[number, dtype] = np.empty(like.size, dtype)
        return held[: like.size].reshape(like.shape)


_LARGE = 1 << 16
"""Numbers from which on memory is used again."""


def _in_lanes(array: Array, lanes: Sequence[Lane]) -> list[Array]:
    """The array in the dtype of each lane, made once for each dtype."""
    if array.dtype.kind != "f":
        return [array] * len(lanes)
    made = {dtype: array.astype(dtype, copy=False) for dtype in {lane.dtype for lane in lanes}}
    return [made[lane.dtype] for lane in lanes]


def _check(network: Network) -> None:
    """Raise NotExactError unless all nodes are in the table, in a form that is."""
    if network.opset < _OPSET:
        raise NotExactError(f"opset {network.opset} is before {_OPSET}")
    for node in network.nodes:
        known = TABLE.get(node.op)
        read = {attribute.name for attribute in node.proto.attribute}
        if node.op != "Constant" and (
            known is None
            or not read <= set(known[1])
            or "" in node.inputs
            or len(node.outputs) > 1
            or node.text("auto_pad", "NOTSET") != "NOTSET"
        ):
            raise NotExactError(f"{node.op} {node.name} is not run by NumPy")
