"""The networks of the ONNX model zoo that the onnx package ships without their weights.

Weights are ConstantOfShape nodes: equal numbers, often with a variance of 0. What can be tested is
that the structure folds, that the files stay valid, and that the outputs do not change. So that
outputs say something, each test also gives the network random constants of the same shapes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

import bnfold
from benchmarks.onnx_count import affine_steps
from tests.conformance.onnx_nodes import interface, op_types
from tests.conformance.onnx_run import error, random_feed, run

_FOLDER = Path(onnx.backend.test.__file__).parent / "data" / "light"
BATCH_NORMS = {
    "bvlc_alexnet": 0,
    "densenet121": 121,
    "inception_v1": 0,
    "inception_v2": 69,
    "resnet50": 53,
    "shufflenet": 49,
    "squeezenet": 0,
    "vgg19": 0,
    "zfnet512": 0,
}
each_network = pytest.mark.parametrize("name", BATCH_NORMS)


def load(name: str) -> onnx.ModelProto:
    return onnx.load(_FOLDER / f"light_{name}.onnx")


@each_network
def test_structure_folds_and_the_file_stays_valid(name):
    model = load(name)
    assert op_types(model)["BatchNormalization"] == BATCH_NORMS[name]
    folded, report = bnfold.fold(model, clip="always")
    onnx.checker.check_model(folded, full_check=True)
    assert interface(folded)[1] == interface(model)[1]
    assert report.kept == 0
    assert affine_steps(folded) == []


@pytest.mark.parametrize("name", ["densenet121", "inception_v2", "resnet50", "shufflenet"])
def test_outputs_are_the_same(name):
    model = with_random_constants(load(name))
    folded, report = bnfold.fold(model, clip="always")
    assert report.kept == 0
    feed = random_feed(model)
    expected = run(model, feed)
    assert all(np.ptp(value) > 0.01 * value.max() and value.max() < 0.99 for value in expected)
    # Rounding: random factors of both signs, and 121 layers whose sums cancel.
    assert error(expected, run(folded, feed)) < 5e-5


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("densenet121", 2),
        ("inception_v2", 1),
        ("resnet50", 1),
        ("shufflenet", 2),
    ],
)
def test_whatever_is_observed_keeps_its_value(name, seed):
    """Any inner values become outputs, and any gamma may be negative or 0."""
    generator = np.random.default_rng(seed)
    model = with_random_constants(load(name))
    for tensor in gammas(model):
        values = numpy_helper.to_array(tensor) * generator.choice([-1, 0, 1], tensor.dims[0])
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    names = {node.output[0] for node in model.graph.node}
    known = onnx.shape_inference.infer_shapes(model).graph.value_info
    inner = [value for value in known if value.name in names]
    model.graph.output.extend(inner[n] for n in sorted(generator.choice(len(inner), 4, False)))
    folded, report = bnfold.fold(model, clip=("auto", "always")[seed % 2])
    assert report.removed > 0
    feed = random_feed(model)
    assert error(run(model, feed), run(folded, feed)) < 1e-4


def gammas(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    names = {node.input[1] for node in norms}
    return [tensor for tensor in model.graph.initializer if tensor.name in names]


def with_random_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Initializers in the place of the ConstantOfShape nodes, so sized that values stay near 1."""
    generator = np.random.default_rng(0)
    constants = {t.name: t for t in model.graph.initializer}
    readers = {name: (node, at) for node in model.graph.node for at, name in enumerate(node.input)}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in constants:
            nodes.append(node)
            continue
        shape = numpy_helper.to_array(constants[node.input[0]]).tolist()
        reader, position = readers[node.output[0]]
        values = _draw(generator, shape, reader.op_type, position)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_inputs_with_values(model)
    return model


def _drop_inputs_with_values(model: onnx.ModelProto) -> None:
    """From IR 4 on initializers need not be inputs, and those that are may be overridden."""
    model.ir_version = 4
    values = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in values]
    del model.graph.input[:]
    model.graph.input.extend(given)


def _draw(generator, shape, op_type, position) -> np.ndarray:
    if op_type == "BatchNormalization":
        low, high = ((0.5, 1.5), (-0.3, 0.3), (-0.3, 0.3), (0.5, 2.0))[position - 1]
        values = generator.uniform(low, high, shape)
        if position == 1:
            values[::20] *= -1
        return values.astype(np.float32)
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
    # Small, since a residual stream adds up and must not saturate the softmax.
    scale = np.sqrt(0.5 / fan_in) if len(shape) > 1 else 0.1
    values = scale * generator.standard_normal(shape)
    if (
        op_type == "Unsqueeze"
    ):  # of a Mul or an Add; small factors leave the range of what is stored
        values = np.sign(values) * generator.uniform(0.1, 0.2, shape)
    return values.astype(np.float32)
