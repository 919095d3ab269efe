"""No false alarm: random networks of all kinds, folded and verified."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import autocast, bfloat16, float16, float32, float64, manual_seed, nn

import bnfold
from bnfold.core.modes import ClipMode
from tests.frontends.caffe import test_random_nets
from tests.frontends.caffe.support import Builder as CaffeBuilder
from tests.frontends.onnx.support import Sketch
from tests.frontends.torch.support import build, image
from tests.frontends.torch.test_random_modules import NAME, STEP, Random
from tests.property.onnx_graphs import Builder


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    modules=st.lists(NAME, min_size=3, max_size=9),
    program=st.lists(STEP, min_size=3, max_size=14),
    outputs=st.integers(1, 2),
    seed=st.integers(0, 1000),
    clip=st.sampled_from(["auto", "always", "never"]),
    dtype=st.sampled_from([float32, float32, float64, float16]),
)
def test_modules(modules, program, outputs, seed, clip, dtype):
    manual_seed(seed)
    model = build(Random(modules, program, outputs), seed).to(dtype)
    x = image(2, 3, 5, 4, seed=seed, dtype=dtype)
    result = bnfold.verify(model, bnfold.fold(model, x, clip=clip).model, x)
    assert result.equal and result.truth == "float64", str(result)


@pytest.mark.parametrize("seed", range(24))
def test_onnx_models(seed):
    builder = Builder(seed, data_type=onnx.TensorProto.FLOAT)
    model = builder.model(int(np.random.default_rng(seed).integers(4, 22)))
    folded = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3]).model
    shapes = {"x": tuple(int(length) for length in builder.values["x"])}
    result = bnfold.verify(model, folded, shapes)
    assert result.equal and result.truth == "float64", str(result)


@pytest.mark.parametrize("seed", range(12))
def test_caffe_networks(tmp_path, seed):
    test_random_nets.assert_folds(tmp_path, seed)
    network, folded = tmp_path / "net.prototxt", tmp_path / "folded.prototxt"
    result = bnfold.verify(network, folded)
    assert result.equal and result.truth == "float64", str(result)


@pytest.mark.parametrize("seed", range(6))
def test_a_value_next_to_nothing_that_is_stored_with_a_shift(seed):
    """Each of 240 channels has one place, and v + t is near 0 in some, where v and t are not."""
    s = Sketch(2, 4, 6, 5, seed=seed)
    s.bn(4)
    s.node("Flatten", axis=0)
    s.node("Gemm", s.at, s.weight("w", 240, 3))
    model = s.model()
    folded = bnfold.fold(model).model
    assert [node.op_type for node in folded.graph.node] == ["Flatten", "Gemm"]
    assert bnfold.verify(model, folded, seed=seed).equal


class Constants(nn.Module):
    """Arithmetic of the code's own, without a weight."""

    def __init__(self, factor: float, constant: float) -> None:
        super().__init__()
        self.factor, self.constant = factor, constant

    def forward(self, x):
        return x * self.factor + self.constant


def cancelling(first: float, second: float, eps: float) -> nn.BatchNorm2d:
    """Takes away nearly what the one before has added."""
    norm = nn.BatchNorm2d(1, eps=eps).double()
    norm.weight.data.fill_(first)
    norm.bias.data.fill_(second)
    norm.running_mean.fill_(0.456)
    return norm


@pytest.mark.parametrize(
    "layers",
    [
        [cancelling(0.001, 0.456, 0.5), cancelling(2.4, 1e-4, 0.5)],
        [cancelling(0.0, 0.4561, 0.5), cancelling(2.4, 0.0, 0.5)],
        [Constants(0.001, 0.456), cancelling(1.0, 0.0, 1e-5)],
        [Constants(0.0, 0.4560001), cancelling(1.0, 0.0, 1e-5)],
        [nn.Conv2d(1, 1, 1).double(), Constants(1e-6, 0.456), cancelling(9.0, 0.0, 0.1)],
        [cancelling(1e-9, 1e3, 0.5), Constants(1.0, -1e3), cancelling(2.0, 456.0, 0.5)],
    ],
)
def test_constants_that_cancel_in_float64(layers):
    """The original's own rounding is all that the two differ by, and float64 is no truth of it."""
    model = nn.Sequential(*layers).eval()
    x = image(2, 1, 5, 4, dtype=float64)
    result = bnfold.fold(model, x, clip="always")
    assert not result.report.notes, str(result.report)


@pytest.mark.parametrize("seed", range(6))
def test_a_fault_of_a_ten_billionth_is_seen_in_float64(seed):
    """More than a shift may cost there, which is not seen: its roundings have no finer truth."""
    model = build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh()), seed).double()
    x = image(2, 3, 5, 4, seed=seed, dtype=float64)
    folded = bnfold.fold(model, x).model
    folded[0].weight.data[seed % 4] *= 1.0 + 1e-12
    assert bnfold.verify(model, folded, x).equal
    folded[0].weight.data[seed % 4] *= 1.0 + 1e-10
    assert not bnfold.verify(model, folded, x).equal


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "scale in float16", "as asked"])
def test_constants_that_are_stored_in_16_bits(kind):
    """What they were rounded to is what the network computes with, in float64, too."""
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    taken = s.at
    if kind in ("float16", "bfloat16"):
        narrow = getattr(onnx.TensorProto, kind.upper())
        s.node("Cast", s.constant("g", s.rng.uniform(0.5, 2.0, 4)), to=narrow)
        gamma = s.node("Cast", to=onnx.TensorProto.FLOAT)
    else:
        s.constant("q", s.rng.integers(20, 100, 4).astype(np.int8))
        scale = onnx.numpy_helper.from_array(np.array(0.013, np.float16), "scale")
        s.initializers.append(scale)
        asked = {"output_dtype": onnx.TensorProto.FLOAT} if kind == "as asked" else {}
        gamma = s.node("DequantizeLinear", "q", "scale", **asked)
        gamma = gamma if asked else s.node("Cast", to=onnx.TensorProto.FLOAT)
    names = [s.weight("b", 4), s.weight("m", 4), s.constant("v", s.rng.uniform(0.5, 2.0, 4))]
    s.node("BatchNormalization", taken, gamma, *names, name="bn")
    model = s.model(opset=23 if kind == "as asked" else 19, ir_version=11)
    result = bnfold.fold(model)
    assert result.report.removed == 1
    verdict = bnfold.verify(model, result.model)
    assert verdict.equal and verdict.truth == "float64", str(verdict)


@pytest.mark.parametrize("gamma", [1e-39, 1e-42, -3e-41])
@pytest.mark.parametrize("then", ["Relu", "Sigmoid", ""])
def test_a_gamma_below_the_normal_numbers(gamma, then):
    """The weights of that channel are multiples of 2^-149: few digits are left of them."""
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    parts = [np.array([0.7, 0.9, gamma, 0.3]), np.zeros(4), s.rng.normal(size=4), np.ones(4)]
    names = [s.constant(name, part) for name, part in zip("gbmv", parts, strict=True)]
    s.node("BatchNormalization", s.at, *names, name="bn")
    if then:
        s.node(then)
        s.conv(4, 3, 1, name="last")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    verdict = bnfold.verify(model, folded)
    assert verdict.equal and verdict.truth == "float64", str(verdict)


class Narrow(nn.Module):
    """The values between BatchNorm and convolution are in 16 bits."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.bn, self.conv, self.way = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), way

    def forward(self, x):
        x = x.relu()
        if self.way == "half":
            return self.conv(self.bn(x).half().float())
        if self.way == "to":
            return self.conv(self.bn(x).to(bfloat16).to(x.dtype))
        with autocast("cpu", bfloat16):
            return self.conv(self.bn(x)).float()


@pytest.mark.parametrize("way", ["half", "to", "autocast"])
def test_a_module_that_computes_in_16_bits_inside(way):
    """The original is far from float64 for that, and so is the fold."""
    model, x = build(Narrow(way)).float(), image(2, 4, 9, 9, dtype=float32)
    folded, report = bnfold.fold(model, x)
    assert report.removed == 1 and not report.notes, str(report)
    assert (verdict := bnfold.verify(model, folded, x)).equal and verdict.truth == "float64"
    folded.conv.weight.data[1] *= 1.01
    assert not bnfold.verify(model, folded, x).equal


@pytest.mark.parametrize(
    ("narrow", "own"), [("FLOAT16", "FLOAT"), ("BFLOAT16", "FLOAT"), ("FLOAT", "DOUBLE")]
)
def test_a_model_that_computes_in_fewer_bits_inside(narrow, own):
    s = Sketch(2, 4, 9, 9, data_type=getattr(onnx.TensorProto, own))
    s.node("Relu")
    s.bn(4)
    s.node("Cast", to=getattr(onnx.TensorProto, narrow))
    s.node("Cast", to=getattr(onnx.TensorProto, own))
    s.conv(4, 5)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    verdict = bnfold.verify(model, folded)
    assert verdict.equal and verdict.truth == "float64", str(verdict)
    weight = next(tensor for tensor in folded.graph.initializer if len(tensor.dims) == 4)
    faulty = onnx.numpy_helper.to_array(weight).copy()
    faulty[1] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(faulty, weight.name))
    assert not bnfold.verify(model, folded).equal


@pytest.mark.parametrize("steps", ["BatchNormalization", "Mul and Add"])
def test_a_step_between_casts(steps):
    """The runtime leaves out the casts around it, and not those that are left where it was."""
    s = Sketch(2, 3, 9, 9)
    s.conv(3, 4)
    s.node("Cast", to=onnx.TensorProto.FLOAT16)
    s.dtype = np.dtype(np.float16)
    if steps == "BatchNormalization":
        s.bn(4)
    else:
        s.node("Mul", s.at, s.weight("scale", 4, 1, 1))
        s.node("Add", s.at, s.weight("shift", 4, 1, 1))
    s.node("Cast", to=onnx.TensorProto.FLOAT)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    verdict = bnfold.verify(model, folded)
    assert verdict.equal and verdict.truth == "float64", str(verdict)
    weight = next(tensor for tensor in folded.graph.initializer if len(tensor.dims) == 4)
    faulty = onnx.numpy_helper.to_array(weight).copy()
    faulty[1] *= 1.001
    weight.CopyFrom(onnx.numpy_helper.from_array(faulty, weight.name))
    assert bnfold.verify(model, folded).verdict == "not equal"


@pytest.mark.parametrize(("scale", "antialias"), [(1.5, 0), (3.0, 0), (0.6, 0), (0.6, 1)])
def test_a_cubic_resize(scale, antialias):
    """Its weights sum to 1 in float64, whatever dtype the attribute that shapes them has."""
    s = Sketch(2, 3, 10, 10)
    s.node("Relu")
    s.bn(3)
    scales = numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")
    s.initializers.append(scales)
    s.node("Resize", s.at, "", "scales", mode="cubic", antialias=antialias)
    s.conv(3, 4, 1)
    model = s.model(opset=18)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    verdict = bnfold.verify(model, folded)
    assert verdict.equal and verdict.truth == "float64", str(verdict)


@pytest.mark.parametrize("seed", [7, 8, 13])
def test_a_mean_over_many_places(seed):
    """ONNX Runtime sums 50,000 numbers one by one: bits that move show little of the cost."""
    s = Sketch("n", 4, "h", "w", seed=seed)
    s.node("Relu")
    s.bn(4)
    s.node("GlobalAveragePool")
    s.node("Flatten")
    s.node("Gemm", s.at, s.weight("w", 4, 3), s.weight("c", 3))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    verdict = bnfold.verify(model, folded)
    assert verdict.equal or not verdict.proven, str(verdict)


@pytest.mark.parametrize("size", [32, 128])
def test_a_mean_over_many_places_in_caffe(tmp_path, size):
    """Where no weight lies in front, float64's own rounding is all there is."""
    net = CaffeBuilder((1, 3, size, size))
    net.relu(top="relu")
    net.batch_norm()
    net.layer("Pooling", "pooling_param { pool: AVE global_pooling: true }")
    net.inner_product(2, 3, bias=True)
    made = net.pair(form="packed")
    network = tmp_path / "net.prototxt"
    network.write_bytes(made.text)
    network.with_suffix(".caffemodel").write_bytes(made.weights)
    folded = bnfold.fold(network, output=tmp_path / "folded.prototxt")
    assert folded.report.removed == 1
    verdict = bnfold.verify(network, tmp_path / "folded.prototxt")
    assert verdict.equal, str(verdict)


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize("mean", ["ReduceMean", "GlobalAveragePool"])
@pytest.mark.parametrize("behind", ["bn", "gemm"])
def test_a_step_that_was_merged_before_it_was_removed(op, mean, behind):
    """How tensors are stored is told by what was merged, and that was rounded."""
    s = Sketch("n", 6, 5, 5)
    norm = s.bn(6, name="first")
    s.node(op, "x", norm)
    s.node(mean, **({"axes": [2, 3]} if mean == "ReduceMean" else {}))
    if behind == "bn":
        s.bn(6, name="second")
    else:
        s.node("Flatten")
        s.node("Gemm", s.at, s.weight("w", 6, 3), s.weight("c", 3))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1 and report.merged
    verdict = bnfold.verify(model, folded)
    assert verdict.equal and verdict.layers, str(verdict)
