"""Local functions: folded where one body serves all calls, and left alone with a reason else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Reason
from tests.conformance.onnx_run import error, feeds, run, run_exactly
from tests.conformance.onnx_sketch import Sketch

PARAMETERS = ("w", "b", "bn_gamma", "bn_beta", "bn_mean", "bn_var")


def block(s: Sketch, name: str = "Block", **options) -> onnx.FunctionProto:
    """y = sigmoid(bn(conv(a))): everything but `a` is an argument."""
    bn = helper.make_node(
        "BatchNormalization", ["c", *PARAMETERS[2:]], ["n"], name="bn", epsilon=1e-3
    )
    nodes = [
        helper.make_node("Conv", ["a", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        bn,
        helper.make_node("Sigmoid", ["n"], ["y"], name="sigmoid"),
    ]
    opsets = [helper.make_opsetid("", s.opset)]
    function = helper.make_function(
        "local", name, ["a", *PARAMETERS], ["y"], nodes, opsets, **options
    )
    s.functions.append(function)
    s.domains["local"] = 1
    return function


def weights(s: Sketch, mark: str = "") -> list[str]:
    names = [
        s.tensor(f"conv{mark}_w", s.uniform(4, 4, 3, 3)),
        s.tensor(f"conv{mark}_b", s.uniform(4)),
    ]
    names.append(s.tensor(f"gamma{mark}", s.gammas(4)))
    names += [s.tensor(f"{key}{mark}", s.uniform(4)) for key in ("beta", "mean")]
    return [*names, s.tensor(f"var{mark}", s.uniform(4, low=0.4, high=1.6))]


def sketch(dtype=np.float32) -> tuple[Sketch, str]:
    s = Sketch(dtype)
    return s, s.input(2, 4, 6, 6)


def finish(s: Sketch, *values: str) -> onnx.ModelProto:
    s.output(*values, shape=(2, 4, 6, 6))
    return s.model()


def check(draw, **options) -> tuple[onnx.ModelProto, bnfold.FoldReport]:
    """Fold in both dtypes; the numbers must be the same, and what is folded twice too."""
    exact, model = draw(np.float64), draw(np.float32)
    folded, report = bnfold.fold(model, **options)
    onnx.checker.check_model(folded, full_check=True)
    for feed in feeds(model):
        truth = run_exactly(exact, feed)
        assert error(truth, run_exactly(bnfold.fold(exact, **options).model, feed)) < 1e-11
        assert error(truth, run(folded, feed)) < 1e-5
    assert bnfold.fold(folded, **options).report.removed == 0
    assert bnfold.inspect(model, **options).items == report.items
    return folded, report


def the_reason(report: bnfold.FoldReport) -> str:
    (item,) = report.items
    assert (item.name, item.reason) == ("Block/bn", Reason.NONLINEAR)
    return item.sentence


# -------------------------------------------------------------------- what must stay


def test_two_calls_with_different_weights():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        x = s.node("Block", x, *weights(s), name="one", domain="local")
        return finish(s, s.node("Block", x, *weights(s, "2"), name="two", domain="local"))

    folded, report = check(draw)
    (item,) = report.items
    assert (item.name, item.reason) == ("Block/bn", Reason.NOT_CONSTANT)
    assert len(folded.graph.initializer) == 12


def test_two_calls_with_one_weight_and_different_statistics():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        first, second = weights(s), weights(s, "2")
        x = s.node("Block", x, *first, name="one", domain="local")
        both = [*first[:2], *second[2:]]
        return finish(s, s.node("Block", x, *both, name="two", domain="local"))

    _, report = check(draw)
    assert report.removed == 0


def test_statistics_that_the_user_passes_in():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        names = weights(s)
        s.inputs.append(helper.make_tensor_value_info("mean", s.element_type, [4]))
        return finish(s, s.node("Block", x, *names, name="one", domain="local"))

    _, report = check(draw)
    assert report.items[0].reason is Reason.NOT_CONSTANT


def test_an_epsilon_that_comes_from_the_call():
    def draw(dtype):
        s, x = sketch(dtype)
        function = block(s, attributes=["small"])
        bn = function.node[1]
        del bn.attribute[:]
        bn.attribute.add(name="epsilon", type=onnx.AttributeProto.FLOAT, ref_attr_name="small")
        return finish(s, s.node("Block", x, *weights(s), name="one", domain="local", small=0.3))

    _, report = check(draw)
    assert "attributes come from the calls" in the_reason(report)


def test_calls_with_values_of_different_shapes():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        names = weights(s)
        x = s.node("Block", x, *names, name="one", domain="local")
        pooled = s.node("MaxPool", x, name="pool", kernel_shape=[2, 2])
        s.node("Block", pooled, *names, name="two", domain="local")
        s.output(x, shape=(2, 4, 6, 6))
        s.output("two_out", shape=(2, 4, 5, 5))
        return s.model()

    _, report = check(draw)
    assert "different shapes" in the_reason(report)


@pytest.mark.parametrize("place", ["function", "branch"])
def test_a_call_that_is_not_in_the_main_graph(place):
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        names = weights(s)
        if place == "function":
            inner = helper.make_node("Block", ["a", *PARAMETERS], ["y"], domain="local")
            opsets = [helper.make_opsetid("", s.opset), helper.make_opsetid("local", 1)]
            s.functions.append(
                helper.make_function("local", "Outer", ["a", *PARAMETERS], ["y"], [inner], opsets)
            )
            return finish(s, s.node("Outer", x, *names, name="one", domain="local"))
        s.node("Block", x, *names, name="one", domain="local")
        call = s.nodes.pop()
        value = helper.make_tensor_value_info("one_out", s.element_type, [2, 4, 6, 6])
        then = helper.make_graph([call], "then", [], [value])
        same = helper.make_node("Identity", [x], ["same"])
        value = helper.make_tensor_value_info("same", s.element_type, [2, 4, 6, 6])
        other = helper.make_graph([same], "else", [], [value])
        flag = s.input(name="flag", element_type=TensorProto.BOOL)
        s.node("If", flag, name="if", then_branch=then, else_branch=other)
        return finish(s, "if_out")

    _, report = check(draw)
    assert "from another function or a subgraph" in the_reason(report)


def test_a_function_that_nothing_calls():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        return finish(s, s.node("Neg", x, name="neg"))

    _, report = check(draw)
    assert "nothing calls it" in the_reason(report)


def test_what_a_function_returns_stays_as_it_is():
    """Nothing is left in the function that could take the BatchNorm in, and nothing leaves it."""

    def draw(dtype):
        s, x = sketch(dtype)
        function = block(s)
        del function.node[0], function.node[1]
        function.node[0].input[0], function.node[0].output[0] = "a", "y"
        del function.input[1:3]
        x = s.node("Conv", x, *weights(s)[:2], name="conv", pads=[1] * 4)
        names = [t.name for t in s.initializers[2:]]
        return finish(s, s.node("Block", x, *names, name="one", domain="local"))

    _, report = check(draw)
    assert "in and out of a local function" in the_reason(report)


# -------------------------------------------------------------------- what goes


def test_one_call():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        return finish(s, s.node("Block", x, *weights(s), name="one", domain="local"))

    folded, report = check(draw)
    (item,) = report.items
    assert (item.name, item.into, item.calls) == ("Block/bn", ("Block/conv",), 1)
    (function,) = folded.functions
    assert [node.op_type for node in function.node] == ["Conv", "Sigmoid"]
    assert len(function.input) == 3
    assert {t.name for t in folded.graph.initializer} == set(folded.graph.node[0].input[1:])


def test_several_calls_with_the_same_weights():
    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        names = weights(s)
        for number in range(3):
            x = s.node("Block", x, *names, name=f"call{number}", domain="local")
        return finish(s, x)

    folded, report = check(draw)
    (item,) = report.items
    assert (item.into, item.calls) == (("Block/conv",), 3)
    assert len(folded.graph.initializer) == 2
    assert [node.op_type for node in folded.graph.node] == ["Block"] * 3


def test_a_weight_that_the_main_graph_reads_too():
    """And by another name than that of the argument: a name of the function means nothing there."""

    def draw(dtype):
        s, x = sketch(dtype)
        block(s)
        names = weights(s)
        y = s.node("Block", x, *names, name="one", domain="local")
        s.tensor("w", s.uniform(4, 4, 3, 3))
        other = s.node("Conv", x, names[0], name="plain", pads=[1] * 4)
        more = s.node("Conv", x, "w", name="more", pads=[1] * 4)
        return finish(s, s.node("Sum", y, other, more, name="sum"))

    folded, report = check(draw, merge="never")
    assert report.removed == 1
    assert {"conv_w", "w"} <= {t.name for t in folded.graph.initializer}
    assert "gamma" not in {t.name for t in folded.graph.initializer}


def test_constants_of_the_function_itself():
    """Two calls; weights and statistics are Constant nodes in the function."""

    def draw(dtype):
        s, x = sketch(dtype)
        function = block(s)
        weights(s)
        del function.input[1:]
        for name, tensor in zip(PARAMETERS, s.initializers, strict=True):
            value = numpy_helper.from_array(numpy_helper.to_array(tensor), name)
            function.node.insert(0, helper.make_node("Constant", [], [name], value=value))
        s.initializers.clear()
        x = s.node("Block", x, name="one", domain="local")
        return finish(s, s.node("Block", x, name="two", domain="local"))

    folded, report = check(draw)
    assert (report.removed, report.items[0].calls) == (1, 2)
    assert [node.op_type for node in folded.functions[0].node] == ["Conv", "Sigmoid"]
