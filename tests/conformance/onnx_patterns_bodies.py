"""Patterns with a BatchNorm inside: in branches of If, in bodies of Loop and Scan."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_patterns_nested import branch
from tests.conformance.onnx_sketch import Sketch

SHAPE = [2, 4, 4, 4]


def flag(s: Sketch) -> str:
    return s.input(name="flag", element_type=TensorProto.BOOL)


def finish(s: Sketch, then: GraphProto, x: str, shape: list[int] = SHAPE) -> None:
    """An If; the other branch gives zeros of the same shape."""
    zeros = s.tensor("zeros", np.zeros(shape, dtype=s.dtype))
    s.node("Mul", zeros, s.node("ReduceMean", x, name="mean", keepdims=0), name="other")
    other = branch(s, 2, "other_out", shape)
    s.node("If", "flag", name="if", then_branch=then, else_branch=other)
    s.output("if_out")


def loop(s: Sketch, body: GraphProto, start: str) -> None:
    s.tensor("three", np.array(3, dtype=np.int64))
    s.tensor("yes", np.array(True))
    s.node("Loop", "three", "yes", start, name="loop", body=body)
    s.output("loop_out")


def loop_body(s: Sketch, nodes: int, output: str, shape: list[int | str]) -> GraphProto:
    """The last nodes as the body of a Loop that carries `carried`."""
    s.node("Identity", "go_in", name="go", outputs=["go_out"])
    inner = branch(s, nodes + 1, output, list(shape))  # type: ignore[arg-type]
    inner.input.append(helper.make_tensor_value_info("step", TensorProto.INT64, []))
    inner.input.append(helper.make_tensor_value_info("go_in", TensorProto.BOOL, []))
    inner.input.append(helper.make_tensor_value_info("carried", s.element_type, shape))
    inner.output.insert(0, helper.make_tensor_value_info("go_out", TensorProto.BOOL, []))
    return inner


# -------------------------------------------------------------------- what must stay


@pattern(kept={"bn": "nonlinear"})
def loop_state_through_a_bn(s: Sketch) -> None:
    """A BatchNorm on what a Loop carries: it is read as it is in the next round."""
    x = s.input(*SHAPE)
    s.bn("carried", 4)
    loop(s, loop_body(s, 1, "bn_out", SHAPE), x)


@pattern(kept={"bn": "nonlinear"})
def branch_returns_conv_and_bn(s: Sketch) -> None:
    """The branch returns the convolution too, so nothing can take the BatchNorm in."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4), 4)
    s.node("Concat", "conv_out", "bn_out", name="cat", axis=1)
    s.node("Sigmoid", "cat_out", name="sigmoid")
    finish(s, branch(s, 4, "sigmoid_out", [2, 8, 4, 4]), x, [2, 8, 4, 4])


@pattern(kept={"bn": "padding"})
def bn_on_an_outer_value_before_padding(s: Sketch) -> None:
    """Its shift would have to cross the padding of the convolution in the branch."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="outer")
    flag(s)
    s.conv(s.bn(x, 4), 4, 4, pad=1)
    finish(s, branch(s, 2, "conv_out", SHAPE), x)


@pattern(kept={"bn": "not-constant"})
def loop_carries_the_statistics(s: Sketch) -> None:
    """The mean is what the Loop carries: it is no constant."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    start = s.tensor("start", s.uniform(4))
    parts = [s.tensor(key, s.uniform(4, low=0.5, high=1.5)) for key in ("g", "b", "v")]
    names = [parts[0], parts[1], "carried", parts[2]]
    s.node("BatchNormalization", x, *names, name="bn")
    s.node("ReduceMean", "bn_out", name="mean", axes=[0, 2, 3], keepdims=0)
    loop(s, loop_body(s, 2, "mean_out", [4]), start)


@pattern(kept={"bn": "not-constant"})
def branch_with_a_gamma_that_the_user_sets(s: Sketch) -> None:
    """An initializer that is an input too can be overridden, in a branch as outside."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4), 4)
    s.inputs.append(helper.make_tensor_value_info("bn_gamma", s.element_type, [4]))
    finish(s, branch(s, 2, "bn_out", SHAPE), x)


@pattern(kept={"bn": "nonlinear"})
def nested_branch_reads_the_conv(s: Sketch) -> None:
    """An If inside of the branch reads the convolution before the BatchNorm."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.conv(x, 3, 4)
    s.node("Neg", "conv_out", name="neg")
    then = branch(s, 1, "neg_out", SHAPE)
    s.node("Identity", "conv_out", name="same")
    s.node(
        "If", "flag", name="inner", then_branch=then, else_branch=branch(s, 1, "same_out", SHAPE)
    )
    s.node("Sigmoid", s.bn("conv_out", 4), name="sigmoid")
    s.node("Add", "sigmoid_out", "inner_out", name="add")
    finish(s, branch(s, 5, "add_out", SHAPE), x)


# -------------------------------------------------------------------- what goes


@pattern("bn")
def conv_bn_in_a_branch(s: Sketch) -> None:
    """Both in one branch, with weights of the graph around it that nobody else reads."""
    x = s.input("batch", 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4, pad=1), 4)
    s.node("Relu", "bn_out", name="relu")
    s.conv("relu_out", 4, 4, name="next")
    s.node("ReduceMean", "next_out", name="pool", axes=[0, 2, 3])
    finish(s, branch(s, 5, "pool_out", [1, 4, 1, 1]), x, [1, 4, 1, 1])


@pattern("bn")
def bn_on_an_outer_value_before_a_conv(s: Sketch) -> None:
    """The value stays as it is, for others read it; the convolution in the branch takes it in."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="outer")
    flag(s)
    s.conv(s.bn(x, 4), 4, 4, kernel=1)
    finish(s, branch(s, 2, "conv_out", SHAPE), x)
    s.output("outer_out")


@pattern("bn_then", "bn_else")
def one_weight_in_two_branches(s: Sketch) -> None:
    """Each branch folds its BatchNorm into a weight of its own."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.conv(x, 3, 4)
    s.bn("conv_out", 4, name="bn_then")
    then = branch(s, 2, "bn_then_out", SHAPE)
    s.node("Conv", x, "conv_w", "conv_b", name="conv_else")
    s.bn("conv_else_out", 4, name="bn_else")
    other = branch(s, 2, "bn_else_out", SHAPE)
    s.node("If", "flag", name="if", then_branch=then, else_branch=other)
    s.output("if_out")


@pattern("bn_outer", "bn")
def one_weight_outside_and_in_a_branch(s: Sketch) -> None:
    """The convolution outside uses the same weight, and has another BatchNorm."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4), 4, name="bn_outer")
    s.node("Sigmoid", "bn_outer_out", name="sigmoid")
    s.node("Conv", x, "conv_w", "conv_b", name="conv_inner")
    s.bn("conv_inner_out", 4)
    finish(s, branch(s, 2, "bn_out", SHAPE), x)
    s.output("sigmoid_out")


@pattern("bn", "bn_second")
def one_weight_twice_in_a_branch(s: Sketch) -> None:
    """Two convolutions of the branch read it, and each has a BatchNorm of its own."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4), 4)
    s.node("Conv", x, "conv_w", "conv_b", name="second")
    s.bn("second_out", 4, name="bn_second")
    s.node("Sigmoid", "bn_out", name="sigmoid")
    s.node("Mul", "sigmoid_out", "bn_second_out", name="gate")
    finish(s, branch(s, 6, "gate_out", SHAPE), x)


@pattern("bn")
def weight_of_the_branch_itself(s: Sketch) -> None:
    """The branch has its own initializers: they are edited there."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4), 4)
    then = branch(s, 2, "bn_out", SHAPE)
    then.initializer.extend(s.initializers)
    s.initializers.clear()
    finish(s, then, x)


@pattern("bn")
def statistics_that_the_outer_graph_computes(s: Sketch) -> None:
    """The scale is computed outside, from constants; the weight is a Constant node outside."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    halves = s.tensor("halves", s.gammas(4))
    scale = s.node("Add", halves, halves, name="scale")
    s.conv(x, 3, 4)
    weight = s.initializers.pop(next(i for i, t in enumerate(s.initializers) if t.name == "conv_w"))
    conv = s.nodes.pop()
    s.node("Constant", name="weight", outputs=["conv_w"], value=weight)
    s.nodes.append(conv)
    s.bn("conv_out", 4)
    s.nodes[-1].input[1] = scale
    finish(s, branch(s, 2, "bn_out", SHAPE), x)


@pattern("bn", "bn_else")
def branch_in_a_branch(s: Sketch) -> None:
    """Two levels down, with weights of the outermost graph."""
    x = s.input(2, 3, 6, 6)
    flag(s)
    s.bn(s.conv(x, 3, 4), 4)
    then = branch(s, 2, "bn_out", SHAPE)
    s.bn(s.conv(x, 3, 4, name="conv_else"), 4, name="bn_else")
    other = branch(s, 2, "bn_else_out", SHAPE)
    s.node("Not", "flag", name="not")
    s.node("If", "not_out", name="inner", then_branch=then, else_branch=other)
    s.node("Sigmoid", "inner_out", name="sigmoid")
    finish(s, branch(s, 3, "sigmoid_out", SHAPE), x)


@pattern("bn")
def conv_bn_in_a_loop(s: Sketch) -> None:
    """What is carried stays as it is; in between the BatchNorm goes."""
    x = s.input(*SHAPE)
    s.bn(s.conv("carried", 4, 4, pad=1), 4)
    s.node("Tanh", "bn_out", name="tanh")
    loop(s, loop_body(s, 3, "tanh_out", SHAPE), x)


@pattern("bn")
def conv_bn_in_a_loop_of_open_shape(s: Sketch) -> None:
    """Only the number of axes and of channels is declared."""
    x = s.input("batch", 4, "height", "width")
    s.bn(s.conv("carried", 4, 4, pad=1), 4)
    s.node("Tanh", "bn_out", name="tanh")
    loop(s, loop_body(s, 3, "tanh_out", ["n", 4, "h", "w"]), x)


@pattern("bn")
def conv_bn_in_a_scan(s: Sketch) -> None:
    """The body runs for each slice of a sequence of images."""
    x = s.input(5, 2, 3, 6, 6)
    s.bn(s.conv("slice", 3, 4), 4)
    s.node("Add", "bn_out", "state", name="add")
    body = branch(s, 3, "add_out", SHAPE)
    body.input.append(helper.make_tensor_value_info("state", s.element_type, SHAPE))
    body.input.append(helper.make_tensor_value_info("slice", s.element_type, [2, 3, 6, 6]))
    body.output.append(helper.make_tensor_value_info("bn_out", s.element_type, SHAPE))
    start = s.tensor("start", np.zeros(SHAPE, dtype=s.dtype))
    s.node("Scan", start, x, name="scan", outputs=["last", "all"], body=body, num_scan_inputs=1)
    s.output("last", "all")


@pattern("bn", "bn_outer")
def folded_on_both_sides_of_the_edge(s: Sketch) -> None:
    """Outside and inside, each on its own side."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4, name="outer"), 4, name="bn_outer")
    flag(s)
    s.bn(s.conv(x, 4, 4, pad=1), 4)
    finish(s, branch(s, 2, "bn_out", SHAPE), x)
