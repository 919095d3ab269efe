"""Norms of each sample: nothing passes what they compute, their constants take in what follows."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same, ops


def norm(s: Sketch, form: str, channels: int, **options):
    """Add one; most have constants per channel of axis 1, or of the last."""
    operands = [s.at, s.weight("scale", channels)]
    if form not in ("LayerNormalization without B", "RMSNormalization"):
        operands.append(s.weight("b", channels))
    more = {"num_groups": 2} if form == "GroupNormalization" else {}
    return s.node(form.partition(" ")[0], *operands, name="norm", **more, **options)


def behind(s: Sketch, form: str) -> int:
    """Put the channels of the norm on axis 1; says which opset it needs."""
    if form.startswith(("Layer", "RMS")):
        s.node("Transpose", perm=[0, 3, 1, 2])
    return {"GroupNormalization": 21, "RMSNormalization": 23}.get(form, 17)


FORMS = [
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "LayerNormalization without B",
]


# -------------------------------------------------------------------- kept


@pytest.mark.parametrize("form", [*FORMS, "RMSNormalization"])
def test_nothing_passes_from_in_front(form):
    s = Sketch(2, 4, 6, 4)
    s.bn(4, name="front")
    norm(s, form, 4)
    opset = behind(s, form)
    model = s.model(opset=opset)
    folded, report = bnfold.fold(model, verify=False)
    assert (report.removed, report.items[0].blocker) == (0, "norm")
    assert folded == model


@pytest.mark.parametrize("shape", [(6, 4), (1,), ()])
def test_constants_that_are_not_one_per_channel(shape):
    s = Sketch(2, 4, 6, 4)
    axis = 2 if len(shape) > 1 else -1
    s.node("LayerNormalization", s.at, s.weight("scale", *shape), name="norm", axis=axis)
    s.node("Transpose", perm=[0, 3, 1, 2])
    s.bn(4)
    assert bnfold.inspect(s.model()).removed == 0


def test_constants_of_the_user():
    s = Sketch(2, 4, 6, 6)
    s.inputs.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, (4,)))
    s.node("InstanceNormalization", s.at, "scale", s.weight("b", 4), name="norm")
    s.bn(4)
    assert bnfold.inspect(s.model()).removed == 0


def test_no_shift_goes_where_there_is_no_b():
    s = Sketch(2, 4, 6, 4)
    norm(s, "RMSNormalization", 4)
    opset = behind(s, "RMSNormalization")
    s.bn(4)
    assert bnfold.inspect(s.model(opset=opset)).removed == 0


@pytest.mark.parametrize("form", FORMS)
def test_what_somebody_else_reads_stays(form):
    s = Sketch(2, 4, 6, 4)
    made = norm(s, form, 4)
    opset = behind(s, form)
    s.bn(4)
    model = s.model(s.at, made, opset=opset)
    assert bnfold.fold(model, verify=False).model == model


# -------------------------------------------------------------------- folded


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_norm_behind_goes(form, merge):
    s = Sketch("n", 4, 6, 4)
    s.node("Tanh")
    norm(s, form, 4)
    opset = behind(s, form)
    s.bn(4)
    s.node("Sigmoid")
    model = s.model(opset=opset)
    folded, report = bnfold.fold(model, merge=merge)
    assert [item.into for item in report.items] == [("norm",)]
    assert "BatchNormalization" not in ops(folded)
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 4, 6, 4))
    assert bnfold.fold(folded, merge=merge).model == folded


@pytest.mark.parametrize("form", ["Mul", "Div", "Neg"])
def test_factors_go_where_there_is_no_b(form):
    """And no B is born for them. ONNX Runtime has no RMSNormalization yet in every version."""
    for name in ("LayerNormalization without B", "RMSNormalization"):
        s = Sketch(2, 4, 6, 4)
        norm(s, name, 4)
        s.node(form, s.at, *([] if form == "Neg" else [s.weight("c", 4)]), name="step")
        s.node("Sigmoid")
        model = s.model(opset=behind(Sketch(1, 1, 1, 1), name))
        folded, report = bnfold.fold(model, verify=False)
        assert not report.kept
        assert ops(folded) == [name.partition(" ")[0], "Sigmoid"]
        assert len(folded.graph.node[0].input) == 2
        if name != "RMSNormalization":
            assert_same(model, folded, (2, 4, 6, 4))


def test_a_gamma_of_zero_leaves_a_constant():
    s = Sketch(2, 4, 6, 6)
    norm(s, "InstanceNormalization", 4)
    s.bn(4)
    gamma = next(t for t in s.initializers if t.name == "bn_g")
    values = np.frombuffer(gamma.raw_data, np.float32).copy()
    values[2] = 0.0
    gamma.raw_data = values.tobytes()
    s.node("Sigmoid")
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert_same(model, folded, (2, 4, 6, 6))
    assert bnfold.fold(folded).model == folded


def test_two_norms_that_share_their_constants_get_their_own():
    s = Sketch(2, 4, 6, 6)
    first = norm(s, "InstanceNormalization", 4)
    s.node("InstanceNormalization", "x", "scale", "b", name="other")
    s.bn(4)
    s.node("Concat", s.at, first, axis=1)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.items[0].into == ("other",)
    assert_same(model, folded, (2, 4, 6, 6))


@pytest.mark.parametrize("data_type", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_dtypes(data_type):
    s = Sketch(2, 4, 6, 4, data_type=data_type)
    norm(s, "LayerNormalization", 4)
    s.node("Mul", s.at, s.weight("c", 4))
    s.node("Add", s.at, s.weight("d", 4))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert ops(folded) == ["LayerNormalization"]
    assert not report.kept
    assert_same(model, folded, (2, 4, 6, 4), tolerance=3e-3)


# -------------------------------------------------------------------- ops that do nothing


@pytest.mark.parametrize(
    ("op", "operands"), [("Max", []), ("Min", []), ("Sum", []), ("Mean", []), ("Pow", [1.0])]
)
def test_an_op_of_one_that_does_nothing_is_passed(op, operands):
    s = Sketch("n", 3, 6, 6)
    s.conv(3, 4)
    s.node(op, s.at, *(s.constant(f"c{k}", value) for k, value in enumerate(operands)))
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.kept
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3, 6, 6))
    assert bnfold.fold(folded).model == folded


@pytest.mark.parametrize("exponent", [2.0, 0.5, [1.0, 2.0, 1.0, 1.0]])
def test_other_powers_are_not_passed(exponent):
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.node("Pow", s.at, s.constant("p", np.reshape(exponent, (-1, 1, 1))), name="pow")
    s.bn(4)
    s.node("Sigmoid")
    assert bnfold.inspect(s.model()).removed == 0


@pytest.mark.parametrize("form", [*FORMS, "RMSNormalization"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("seed", range(2))
def test_the_verdict_knows_that_their_constants_are_rounded(form, dtype, seed):
    s = Sketch(2, 4, 6, 4, seed=seed, data_type=dtype)
    norm(s, form, 4)
    opset = behind(s, form)
    s.node("Mul", s.at, s.constant("q", s.rng.uniform(0.5, 1.5, (4, 1, 1))))
    model = s.model(opset=opset, ir_version=10)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert (verdict := bnfold.verify(model, folded)).equal, str(verdict)
