"""A step with a single number that takes a BatchNorm in has one per channel: a fold looks again.

Another fold may remove it, or move it on, and a second fold of a folded file changes nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.conformance.onnx_run import error, feeds, random_feed, run
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import ops
from tests.pairwise import pairwise

CHAINS = {
    "two batch norms around": "bn div sub bn relu conv",
    "at the end": "conv1 add clip twice div mul add bn",
    "a factor in front": "mul bn add relu conv",
    "factors alone": "bn mul relu conv",
    "summands alone": "bn add relu conv",
    "behind a pool": "bn div pool sub bn relu conv",
    "two of each": "bn mul div add sub bn relu conv",
    "behind a sigmoid": "sigmoid div sub bn relu conv",
}


def chain(words: str, *, named: bool = True, start=(2, 4, 6, 6)) -> Sketch:
    s = Sketch(np.float32, seed=3)
    x = s.input(*start)
    for place, word in enumerate(words.split()):
        name = f"{word}{place}"
        if word == "bn":
            x = s.bn(x, 4, name=name)
        elif word in ("mul", "div", "add", "sub"):
            number = s.tensor(f"{name}_c", s.round(np.array([1.7 + 0.2 * place])))
            x = s.node(word.title(), x, number, name=name)
        elif word == "clip":
            bounds = [s.tensor(f"{name}_{n}", s.round(np.array(n))) for n in (0.0, 6.0)]
            x = s.node("Clip", x, *bounds, name=name)
        elif word == "twice":
            x = s.node("Mul", x, s.node("Sigmoid", x, name=f"{name}_s"), name=name)
        elif word == "pool":
            x = s.node("MaxPool", x, name=name, kernel_shape=[2, 2])
        elif word.startswith("conv"):
            x = s.conv(x, 4, 4, 1, name=name)
        else:
            x = s.node(word.title(), x, name=name)
    s.output(x)
    if not named:
        for node in s.nodes:
            node.name = ""
    return s


WAYS = pairwise(
    [(name, clip) for name in CHAINS for clip in ("auto", "always", "never")],
    ["auto", "never"],
    lambda case: case,
)


@pytest.mark.parametrize(("name", "clip", "merge"), [(*case, merge) for case, merge in WAYS])
def test_a_second_fold_changes_nothing(name, clip, merge):
    words = CHAINS[name]
    for named in (True, False):
        model = chain(words, named=named).model()
        folded, report = bnfold.fold(model, clip=clip, merge=merge)
        for feed in feeds(model):
            assert error(run(model, feed), run(folded, feed)) < 1e-5
        twice = bnfold.fold(folded, clip=clip, merge=merge)
        assert twice.model == folded
        names = [item.name for item in report.items]
        assert len(names) == len(set(names))
        assert bnfold.verify(model, folded).equal


def test_what_went_is_told_as_of_the_file_that_was_given():
    model = chain(CHAINS["two batch norms around"]).model()
    folded, report = bnfold.fold(model)
    assert ops(folded) == ["Sub", "Relu", "Conv"]
    assert [(item.name, item.into) for item in report.items] == [
        ("bn0", ("sub2", "conv5")),
        ("bn3", ("sub2", "conv5")),
    ]
    assert any("1 further step" in note for note in report.notes)
    assert bnfold.inspect(model).items == report.items


def test_open_sizes():
    model = chain(CHAINS["two batch norms around"], start=("N", 4, "H", "W")).model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["Sub", "Relu", "Conv"]
    for sizes in ({"N": 1, "H": 3, "W": 9}, {"N": 4, "H": 8, "W": 2}):
        feed = random_feed(model, sizes)
        assert error(run(model, feed), run(folded, feed)) < 1e-5


def test_in_a_branch():
    """The second look, too, knows what the branch reads of the graph around it."""
    s = chain("relu bn div sub bn relu conv")
    model, first = s.model(), s.nodes[0]
    value = helper.make_tensor_value_info(s.outputs[0].name, s.element_type, [2, 4, 6, 6])
    then = helper.make_graph(s.nodes[1:], "then", [], [value])
    again = helper.make_node("Identity", [first.output[0]], ["same"])
    same = helper.make_tensor_value_info("same", s.element_type, [2, 4, 6, 6])
    other = helper.make_graph([again], "else", [], [same])
    branch = helper.make_node(
        "If", ["flag"], ["made"], name="if", then_branch=then, else_branch=other
    )
    del model.graph.node[1:]
    model.graph.node.append(branch)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    model.graph.output[0].name = "made"
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    made = next(a.g for a in folded.graph.node[1].attribute if a.name == "then_branch")
    assert [node.op_type for node in made.node] == ["Sub", "Relu", "Conv"]
    for feed in feeds(model):
        assert error(run(model, feed), run(folded, feed)) < 1e-5
    assert bnfold.fold(folded).model == folded
