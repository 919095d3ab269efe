"""Patterns with graphs inside graphs: branches of If, bodies of Loop, local functions."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch


def branch(s: Sketch, nodes: int, output: str, shape: list[int]) -> onnx.GraphProto:
    """The sketch's last nodes, taken out of it, as a graph without inputs."""
    inner = s.nodes[-nodes:]
    del s.nodes[-nodes:]
    value = helper.make_tensor_value_info(output, s.element_type, shape)
    return helper.make_graph(inner, f"branch_{output}", [], [value])


@pattern(kept={"bn": "nonlinear"}, untouched=("if",))
def branch_reads_conv_too(s: Sketch) -> None:
    """A branch of an If reads the convolution's output by its name."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    s.node("Neg", x, name="neg")
    then = branch(s, 1, "neg_out", [2, 4, 4, 4])
    s.node("Identity", x, name="same")
    other = branch(s, 1, "same_out", [2, 4, 4, 4])
    s.node("If", flag, name="if", then_branch=then, else_branch=other)
    s.node("Sigmoid", s.bn(x, 4), name="sigmoid")
    s.output("if_out", "sigmoid_out")


@pattern(kept={"inner": "nonlinear"}, untouched=("if",))
def branch_has_a_bn_on_an_outer_value(s: Sketch) -> None:
    """The BatchNorm in one branch must not change the convolution that both read."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    s.bn(x, 4, name="inner")
    then = branch(s, 1, "inner_out", [2, 4, 4, 4])
    s.node("Neg", x, name="neg")
    other = branch(s, 1, "neg_out", [2, 4, 4, 4])
    s.node("If", flag, name="if", then_branch=then, else_branch=other)
    s.output("if_out")


@pattern("bn", untouched=("if",))
def conv_bn_beside_if(s: Sketch) -> None:
    """A branch reads the BatchNorm's output, which keeps its value."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    s.node("Neg", x, name="neg")
    then = branch(s, 1, "neg_out", [2, 4, 4, 4])
    s.node("Abs", x, name="abs")
    other = branch(s, 1, "abs_out", [2, 4, 4, 4])
    s.node("If", flag, name="if", then_branch=then, else_branch=other)
    s.output("if_out")


@pattern("bn", untouched=("if",))
def branch_reads_the_weight(s: Sketch) -> None:
    """A branch computes with the convolution's weight, and sees it as it was."""
    x = s.input(2, 3, 6, 6)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    s.bn(s.conv(x, 3, 4), 4)
    shape = [4, 3, 3, 3]
    s.node("Mul", "conv_w", s.node("ReduceMean", x, axes=[0, 1, 2, 3]), name="mul")
    then = branch(s, 2, "mul_out", shape)
    s.node("Neg", "conv_w", name="neg")
    other = branch(s, 1, "neg_out", shape)
    s.node("If", flag, name="if", then_branch=then, else_branch=other)
    s.output("bn_out", "if_out")


@pattern("bn", untouched=("loop",))
def loop_reads_bn(s: Sketch) -> None:
    """The body of a Loop takes the BatchNorm's output from outside and adds it up."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.tensor("three", np.array(3, dtype=np.int64))
    s.tensor("yes", np.array(True))
    s.tensor("start", np.zeros((2, 4, 4, 4), dtype=s.dtype))
    shape = [2, 4, 4, 4]
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", x], ["sum"], name="inner_add"),
            helper.make_node("Identity", ["go_in"], ["go_out"], name="inner_go"),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", s.element_type, shape),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", s.element_type, shape),
        ],
    )
    s.node("Loop", "three", "yes", "start", name="loop", body=body)
    s.output("loop_out")


@pattern(untouched=("norm",))
def function_named_batch_normalization(s: Sketch) -> None:
    """A local function of that name computes something else: it is left alone."""
    s.domains["local"] = 1
    s.functions.append(
        helper.make_function(
            "local",
            "BatchNormalization",
            ["a", "b", "c", "d", "e"],
            ["y"],
            [
                helper.make_node("Mul", ["a", "a"], ["squared"]),
                helper.make_node("Sigmoid", ["squared"], ["y"]),
            ],
            [helper.make_opsetid("", s.opset)],
        )
    )
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    names = [s.tensor(key, s.uniform(4, low=0.5, high=1.5)) for key in ("g", "b", "m", "v")]
    s.node("BatchNormalization", x, *names, name="norm", domain="local")
    s.output("norm_out", shape=(2, 4, 4, 4))


@pattern("bn", untouched=("call",))
def function_beside_a_bn(s: Sketch) -> None:
    """A local function is called on the BatchNorm's output."""
    s.domains["local"] = 1
    nodes = [
        helper.make_node("Sigmoid", ["a"], ["gate"]),
        helper.make_node("Mul", ["a", "gate"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", s.opset)]
    s.functions.append(helper.make_function("local", "Silu", ["a"], ["y"], nodes, opsets))
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.node("Silu", x, name="call", domain="local")
    s.output("call_out", shape=(2, 4, 4, 4))
