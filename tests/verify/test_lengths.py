"""What has another length, or another number of parts, in another sample: as the data says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import UsageError
from bnfold.verify import trust
from tests.frontends.onnx.support import Sketch


def limit(s: Sketch, value: float) -> str:
    return s.constant("limit", np.float32(value))


def places(s: Sketch) -> None:
    """Where a number is large, as floats."""
    s.node("Greater", s.at, limit(s, 1.0))
    s.node("NonZero")
    s.node("Cast", to=TensorProto.FLOAT)


def picked(s: Sketch) -> None:
    """The rows that begin with a large number."""
    rows = s.node("Reshape", s.at, s.constant("shape", np.array([-1, 5])))
    first = s.node("ReduceMax", rows, axes=[1], keepdims=0)
    large = s.node("Greater", first, limit(s, 2.0))
    s.node("Compress", rows, large, axis=0)


def cut(s: Sketch) -> None:
    """As many rows of an image as there are large numbers, modulo 5."""
    whole = s.at
    s.node("Greater", whole, limit(s, 1.0))
    s.node("Cast", to=TensorProto.INT64)
    s.node("ReduceSum", keepdims=0)
    s.node("Mod", s.at, s.constant("five", np.array([5])))
    start, axis = s.constant("start", np.array([0])), s.constant("axis", np.array([2]))
    s.node("Slice", whole, start, s.at, axis)


def either(s: Sketch) -> None:
    """The image, or its mean."""
    whole, value = s.at, [helper.make_tensor_value_info("made", TensorProto.FLOAT, None)]
    bodies = {
        name: helper.make_graph([helper.make_node(op, [whole], ["made"])], name, [], value)
        for name, op in (("then_branch", "Identity"), ("else_branch", "GlobalAveragePool"))
    }
    s.node("ReduceMean", "x", keepdims=0)
    s.node("Greater", s.at, limit(s, 0.0))
    s.node("If", **bodies)


def parts(s: Sketch) -> None:
    """A sequence of the channels whose mean is large."""
    whole = s.at
    s.node("ReduceMean", whole, axes=[0, 2, 3], keepdims=0)
    large = s.node("Greater", s.at, limit(s, 0.5))
    s.node("Compress", whole, large, axis=1)
    s.node("SplitToSequence", axis=1, keepdims=1)


def split(s: Sketch) -> None:
    """A sequence of the batch's images."""
    s.node("SplitToSequence", axis=0, keepdims=1)


def mapped(s: Sketch) -> None:
    """A sequence of maps, one per row, as scikit-learn's classifiers return."""
    s.node("GlobalAveragePool")
    s.node("Flatten")
    s.node("ZipMap", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])


def network(tail, batch: int | str = 1) -> onnx.ModelProto:
    """Conv, BatchNorm, and what makes the output."""
    s = Sketch(batch, 3, 5, 5)
    s.conv(3, 4, pads=[1] * 4)
    s.bn(4)
    tail(s)
    model = s.model()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    kind = model.graph.output[0].type
    if tail in (parts, split):
        kind.Clear()
        kind.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    if tail is mapped:
        kind.Clear()
        kind.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
        value = kind.sequence_type.elem_type.map_type.value_type
        value.tensor_type.elem_type = TensorProto.FLOAT
    return model


def faulty(model: onnx.ModelProto, by: float) -> onnx.ModelProto:
    """One channel of the weight is off."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight = next(tensor for tensor in other.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[1] *= by
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return other


@pytest.mark.parametrize("tail", [places, picked, cut, either, parts])
def test_lengths_that_depend_on_the_data(tail):
    model = network(tail)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    result = bnfold.verify(model, folded, samples=6)
    assert result.equal and result.truth == "float64", str(result)
    result = bnfold.verify(model, faulty(folded, 1.001), samples=6)
    assert result.verdict == "not equal" and result.parting is not None, str(result)


@pytest.mark.parametrize("tail", [picked, parts, split, mapped])
def test_lengths_that_depend_on_an_open_batch(tail):
    model = network(tail, "n")
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    result = bnfold.verify(model, folded)
    assert result.equal and result.samples > 2, str(result)
    assert bnfold.verify(model, faulty(folded, 1.01)).verdict == "not equal"


def test_numbers_that_are_nearly_tied_prove_nothing():
    """One more or less is picked: if all else is equal, that is neither right nor wrong."""
    model, other = network(picked, 200), network(picked, 200)
    bound = next(tensor for tensor in other.graph.initializer if tensor.name == "limit")
    bound.CopyFrom(numpy_helper.from_array(np.float32(2.001), "limit"))
    result = bnfold.verify(model, other)
    assert result.verdict == "not proven" and "rounding may decide" in str(result), str(result)
    result = bnfold.verify(model, faulty(other, 1.001))
    assert result.verdict == "not equal" and result.parting == "conv_out", str(result)


def test_another_length_that_the_data_does_not_decide_is_no_tie():
    model, other = network(split), network(split)
    pads = next(a for a in other.graph.node[0].attribute if a.name == "pads")
    pads.ints[3] = 2
    with pytest.raises(UsageError, match="compare models with the same inputs and outputs"):
        bnfold.verify(model, other)


def test_float64_with_another_length_is_not_the_truth(monkeypatch):
    """A number that is nearly tied may be picked there, and not in the model's own dtype."""
    from bnfold.frontends.onnx import run_exact

    own = run_exact.ExactModel.run

    def one_more(self, *args, **options):
        return [
            type(o)(o.name, np.concatenate([o.values, o.values[:1]]), o.dtype)
            for o in own(self, *args, **options)
        ]

    monkeypatch.setattr(run_exact.ExactModel, "run", one_more)
    model = network(picked)
    folded = bnfold.fold(model).model
    result = bnfold.verify(model, folded)
    assert result.equal and result.truth == "nudged" and trust.OTHER_LENGTH in result.notes
    assert bnfold.verify(model, faulty(folded, 1.001)).parting == "conv_out"
