"""Random ONNX models that nothing here can run in float64: what is left is rounding itself.

integers   indices go in, and a table makes numbers of them
unknown    an operator of ONNX Runtime's own, which only that knows
plain      nothing special: PyTorch, which does the arithmetic in float64, is not installed
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.property.onnx_graphs import Builder

FORMS = ("integers", "unknown", "plain")
_OWN = ("Gelu", "FastGelu", "QuickGelu")


def draw(seed: int) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """A model, and the shapes of its inputs. The form follows from the seed."""
    rng = np.random.default_rng(seed)
    builder = Builder(seed, data_type=TensorProto.FLOAT)
    model = builder.model(int(rng.integers(4, 22)))
    name = "x"
    form = FORMS[seed % len(FORMS)]
    if form != "plain":
        _add_unknown(model, rng)
    if form == "integers":
        name = "ids"
        _take_integers(model, rng)
    return model, {name: tuple(int(length) for length in builder.values["x"])}


def _take_integers(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    table = numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "table")
    model.graph.initializer.append(table)
    (info,) = model.graph.input
    info.name, info.type.tensor_type.elem_type = "ids", TensorProto.INT64
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "ids"], ["x"]))


def _add_unknown(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """What one value is read as goes through an operator that float64 does not know."""
    nodes = model.graph.node
    places = [n for n, node in enumerate(nodes) if "x" in node.input]
    made = [n for n, node in enumerate(nodes) if node.op_type in ("Conv", "BatchNormalization")]
    outputs = {info.name for info in model.graph.output}
    made = [n for n in made if nodes[n].output[0] not in outputs]
    value = nodes[int(rng.choice(made))].output[0] if made else "x"
    at = places[0] if value == "x" else 1 + next(n for n in made if nodes[n].output[0] == value)
    for node in nodes:
        for position, name in enumerate(node.input):
            if name == value:
                node.input[position] = f"{value}_own"
    op = str(rng.choice(_OWN))
    nodes.insert(at, helper.make_node(op, [value], [f"{value}_own"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
