"""Patterns in which something must stay: the shortcuts that a careless fold would take."""

from __future__ import annotations

import numpy as np

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch

# ---------------------------------------------------------------- the ends of the network


@pattern(kept={"bn": "padding"})
def bn_padded_conv(s: Sketch) -> None:
    """The border would have to be padded with another number than 0."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3), 3, 4, pad=1)
    s.output("conv_out")


@pattern(kept={"bn": "padding"})
def bn_conv_auto_pad_same(s: Sketch) -> None:
    """auto_pad pads as pads does."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3), 3, 4, auto_pad="SAME_UPPER")
    s.output("conv_out")


@pattern(kept={"bn": "padding"})
def bn_padded_depthwise_conv(s: Sketch) -> None:
    """Groups do not help against padding."""
    s.conv(s.bn(s.input(2, 4, 6, 6), 4), 4, 4, pad=1, groups=4)
    s.output("conv_out")


@pattern(kept={"bn": "padding"})
def bn_conv_transpose(s: Sketch) -> None:
    """At the border of a transposed convolution fewer taps are seen."""
    s.conv(s.bn(s.input(2, 3, 5, 5), 3), 3, 4, op="ConvTranspose", strides=[2, 2])
    s.output("conv_out")


@pattern(kept={"bn": "nonlinear"})
def bn_sigmoid(s: Sketch) -> None:
    """Nothing in front, and no rescaling passes a sigmoid."""
    s.node("Sigmoid", s.bn(s.input(2, 3, 4, 4), 3), name="sigmoid")
    s.output("sigmoid_out")


@pattern(kept={"bn": "graph-output"})
def sigmoid_bn(s: Sketch) -> None:
    """A sigmoid's output is what it is, and so is the network's."""
    s.bn(s.node("Sigmoid", s.input(2, 3, 4, 4)), 3)
    s.output("bn_out")


@pattern("bn1", kept={"bn2": "graph-output"})
def bn_bn(s: Sketch) -> None:
    """Between a given input and a given output one of the two has to stay."""
    s.bn(s.bn(s.input(2, 3, 4, 4), 3, name="bn1"), 3, name="bn2")
    s.output("bn2_out")


@pattern(kept={"bn": "graph-output"})
def conv_bn_conv_is_output_too(s: Sketch) -> None:
    """The network returns the convolution's output as well."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.output("conv_out", "bn_out")


# ---------------------------------------------------------------- two readers


@pattern(kept={"bn": "nonlinear"})
def conv_bn_sigmoid_reads_conv_too(s: Sketch) -> None:
    """A second reader of the convolution lets nothing pass."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.node("Sigmoid", x, name="sigmoid1")
    s.node("Sigmoid", s.bn(x, 4), name="sigmoid2")
    s.output("sigmoid1_out", "sigmoid2_out")


@pattern("bn1", kept={"bn2": "graph-output"})
def conv_two_bns(s: Sketch) -> None:
    """One convolution cannot take in two different BatchNorms."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(x, 4, name="bn1")
    s.bn(x, 4, name="bn2")
    s.output("bn1_out", "bn2_out")


@pattern(kept={"bn": "branches"})
def conv_bn_subtracted_from_conv(s: Sketch) -> None:
    """Without the BatchNorm nothing would be left of the difference."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.conv(s.node("Sub", x, s.bn(x, 4), name="sub"), 4, 2, 1, name="head")
    s.output("head_out")


# ---------------------------------------------------------------- on the way


@pattern(kept={"bn": "activation"})
def bn_leaky_relu_conv(s: Sketch) -> None:
    """LeakyReLU lets positive scales pass and nothing else."""
    s.conv(s.node("LeakyRelu", s.bn(s.input(2, 3, 6, 6), 3), name="leaky"), 3, 4)
    s.output("conv_out")


@pattern(kept={"bn": "padding"})
def leaky_relu_bn_padded_conv(s: Sketch) -> None:
    """The shift can go neither back through the LeakyReLU nor on through the padding."""
    x = s.node("LeakyRelu", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), name="leaky")
    s.conv(s.bn(x, 4), 4, 2, pad=1)
    s.output("conv_out")


@pattern(kept={"bn": "activation"})
def conv_max_pool_bn_negative(s: Sketch) -> None:
    """A negative scale in front of a max pooling would make it a min pooling."""
    s.bn(s.node("MaxPool", s.conv(s.input(2, 3, 6, 6), 3, 4), kernel_shape=[2, 2]), 4)
    s.output("bn_out")


@pattern(kept={"bn": "padding"})
def conv_average_pool_counting_zeros_bn(s: Sketch) -> None:
    """The padded zeros are averaged too."""
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    s.bn(s.node("AveragePool", s.conv(s.input(2, 3, 6, 6), 3, 4), name="pool", **pool), 4)
    s.output("bn_out")


@pattern(kept={"bn": "padding"})
def conv_pad_bn(s: Sketch) -> None:
    """The padded zeros pass the BatchNorm and become another number."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Pad", x, s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), name="pad"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "nonlinear"})
def gate_bn(s: Sketch) -> None:
    """A product of two activations lets no shift pass."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Mul", x, s.node("Sigmoid", x), name="gate"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "activation"})
def bn_sign_conv(s: Sketch) -> None:
    """A sign has its step at 0: no shift passes."""
    s.conv(s.node("Sign", s.bn(s.input(2, 3, 6, 6), 3), name="sign"), 3, 4)
    s.output("conv_out")


@pattern(kept={"bn": "clip-cost"}, clip="auto")
def conv_relu6_bn_padded_conv(s: Sketch) -> None:
    """Two bounds per channel instead of one Clip are as many ops as before."""
    bounds = (s.tensor("low", s.round(0.0)), s.tensor("high", s.round(0.3)))
    x = s.node("Clip", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), *bounds, name="clip")
    s.conv(s.bn(x, 4), 4, 2, pad=1)
    s.output("conv_out")


@pattern(kept={"bn": "padding"}, clip="never")
def conv_relu_bn_padded_conv_never(s: Sketch) -> None:
    """The ReLU could take the shift, but is not to change."""
    x = s.node("Relu", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), name="relu")
    s.conv(s.bn(x, 4), 4, 2, pad=1)
    s.output("conv_out")


@pattern(kept={"bn": "clip-cost"}, clip="never")
def conv_relu_bn_never(s: Sketch) -> None:
    """The ReLU would need a bound per channel, and is not to change."""
    s.bn(s.node("Relu", s.conv(s.input(2, 3, 6, 6), 3, 4), name="relu"), 4)
    s.output("bn_out")


@pattern("bn1", kept={"bn2": "padding", "bn3": "padding"})
def dense_block_without_bottleneck(s: Sketch) -> None:
    """The stem has one shift, and three padded convolutions ask it for three."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, pad=1, name="stem")
    for number in (1, 2):
        width = 2 + 2 * number
        y = s.node("Relu", s.bn(x, width, name=f"bn{number}"), name=f"relu{number}")
        y = s.conv(y, width, 2, pad=1, name=f"conv{number}")
        x = s.node("Concat", x, y, axis=1, name=f"concat{number}")
    x = s.node("Relu", s.bn(x, 8, name="bn3"), name="relu3")
    s.conv(x, 8, 2, pad=1, name="head")
    s.output("head_out")


@pattern(kept={"bn": "graph-output"})
def conv_reshape_bn_across(s: Sketch) -> None:
    """The four values of a channel meet four different constants."""
    x = s.conv(s.input(2, 3, 4, 4), 3, 4)
    s.bn(s.node("Reshape", x, s.integers("shape", 2, 16)), 16)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def matmul_bn_other_axis(s: Sketch) -> None:
    """MatMul has its channels on axis 2, the BatchNorm on axis 1 (of the same length)."""
    x = s.input(2, 4, 3)
    s.bn(s.node("MatMul", x, s.tensor("w", s.uniform(3, 4)), name="matmul"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def concat_with_input_bn(s: Sketch) -> None:
    """Half of the channels come straight from the network's input."""
    x = s.input(2, 3, 6, 6)
    y = s.conv(x, 3, 4, 1)
    s.bn(s.node("Concat", x, y, name="concat", axis=1), 7)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def residual_from_input_bn(s: Sketch) -> None:
    """A sum has one scale, and one operand is the network's input."""
    x = s.input(2, 3, 6, 6)
    s.bn(s.node("Add", x, s.conv(x, 3, 3, pad=1), name="add"), 3)
    s.output("bn_out")


# ---------------------------------------------------------------- not constant, not usable


@pattern(kept={"bn": "batch-statistics"}, has_twin=False)
def conv_bn_training_mode(s: Sketch) -> None:
    """training_mode=1 normalises with the statistics of the batch."""
    outputs = ["bn_out", "running_mean", "running_var"]
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, outputs=outputs, training_mode=1)
    s.output("bn_out")


@pattern(kept={"bn": "batch-statistics"}, opset=9, has_twin=False)
def conv_bn_five_outputs(s: Sketch) -> None:
    """Before opset 14 the additional outputs are what says training."""
    outputs = ["bn_out", "mean", "var", "saved_mean", "saved_var"]
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, outputs=outputs)
    s.output("bn_out")


@pattern(kept={"bn": "bad-statistics"})
def conv_bn_negative_variance(s: Sketch) -> None:
    """The square root of a negative number."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, var=[0.5, -1.0, 0.7, 0.9])
    s.output("bn_out")


@pattern(kept={"bn": "bad-statistics"})
def conv_bn_nan_mean(s: Sketch) -> None:
    """NaN in one channel."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, mean=[0.5, np.nan, 0.7, 0.9])
    s.output("bn_out")


@pattern(kept={"bn": "overflow"}, dtype=np.float16, has_twin=False)
def conv_bn_overflows_float16(s: Sketch) -> None:
    """Small values times a large factor are fine; the weight times the factor is infinite."""
    bounds = (s.tensor("low", s.round(-1e-3)), s.tensor("high", s.round(1e-3)))
    x = s.conv(s.node("Clip", s.input(2, 3, 6, 6), *bounds, name="clip"), 3, 4, bias=False)
    constants = {"gamma": [2e4, 3e4, -3e4, 2.5e4], "var": [9e-3] * 4, "mean": [1e-3, 2e-3, 0, 1e-3]}
    s.bn(x, 4, **constants)
    s.output("bn_out")


@pattern(kept={"bn": "padding"})
def bn_zero_gamma_padded_conv(s: Sketch) -> None:
    """A constant channel, and the padding knows another constant."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3, gamma=[0.0, 1.2, -0.7]), 3, 4, pad=1)
    s.output("conv_out")
