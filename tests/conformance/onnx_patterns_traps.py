"""Patterns in which ONNX says something else than it seems: broadcasting, one value read twice,
optional inputs, casts that round, ops that look like others.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch

# ---------------------------------------------------------------- broadcasting


@pattern("bn", untouched=("mul",))
def constant_along_the_width(s: Sketch) -> None:
    """(4,) broadcasts along the last axis, which is as long as the channels are many."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    x = s.node("Sigmoid", s.node("Mul", x, s.tensor("c", s.gammas(4)), name="mul"))
    s.output(x)


@pattern(kept={"bn": "nonlinear"}, untouched=("mul",))
def constant_along_the_width_bn_sigmoid(s: Sketch) -> None:
    """Behind it the BatchNorm meets other factors at every column."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    x = s.bn(s.node("Mul", x, s.tensor("c", s.gammas(4)), name="mul"), 4)
    s.node("Sigmoid", x, name="end")
    s.output("end_out")


@pattern("mul", "bn")
def constant_of_lower_rank(s: Sketch) -> None:
    """(C, 1, 1) lies along the channels of (N, C, H, W)."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Mul", x, s.tensor("c", s.gammas(4).reshape(4, 1, 1)), name="mul"), 4)
    s.output("bn_out")


@pattern("bn")
def per_image_summand_conv_bn(s: Sketch) -> None:
    """One value per image and channel, broadcast over the image, is a summand like any other."""
    x = s.input(2, 3, 6, 6)
    pooled = s.conv(s.node("GlobalAveragePool", x), 3, 4, 1, name="squeeze")
    s.bn(s.node("Add", pooled, s.conv(x, 3, 4), name="add"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def one_channel_broadcast_bn(s: Sketch) -> None:
    """One channel is added to all four and has one scale, the BatchNorm has four."""
    x = s.input(2, 3, 6, 6)
    one, four = s.conv(x, 3, 1, name="one"), s.conv(x, 3, 4, name="four")
    s.bn(s.node("Add", one, four, name="add"), 4)
    s.output("bn_out")


# ---------------------------------------------------------------- one value, several places


@pattern("bn")
def added_to_itself(s: Sketch) -> None:
    """x + x is 2 x: one scale, twice the shift."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Add", x, x, name="add"), 4)
    s.output("bn_out")


@pattern("bn1", kept={"bn2": "graph-output"})
def subtracted_from_itself(s: Sketch) -> None:
    """x - x is 0 whatever the shift of x is."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, name="bn1")
    s.bn(s.node("Sub", x, x, name="sub"), 4, name="bn2")
    s.output("bn2_out")


@pattern("bn1", kept={"bn2": "nonlinear"})
def multiplied_with_itself(s: Sketch) -> None:
    """A square is a gate whose two sides are one value: no rescaling passes."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, name="bn1")
    s.bn(s.node("Mul", x, x, name="square"), 4, name="bn2")
    s.output("bn2_out")


@pattern(kept={"bn": "graph-output"})
def concatenated_with_itself(s: Sketch) -> None:
    """Each channel appears twice and meets two factors."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Concat", x, x, name="concat", axis=1), 8)
    s.output("bn_out")


@pattern("bn")
def concatenated_with_itself_conv(s: Sketch) -> None:
    """The convolution behind has a weight for each appearance."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem")
    s.conv(s.bn(s.node("Concat", x, x, name="concat", axis=1), 8), 8, 2)
    s.output("conv_out")


@pattern(kept={"bn": "branches"})
def concatenated_with_its_source_along_the_batch(s: Sketch) -> None:
    """Images with and without the BatchNorm meet in one convolution."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem")
    s.conv(s.node("Concat", x, s.bn(x, 4), name="concat", axis=0), 4, 2)
    s.output("conv_out")


@pattern("bn")
def only_the_shape_is_read_too(s: Sketch) -> None:
    """Another op reads the shape of the BatchNorm's input and output, not their values."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    y = s.bn(x, 4)
    s.node("Mul", s.node("Shape", x), s.node("Shape", y), name="shapes")
    s.node("Relu", y, name="relu")
    s.output("relu_out")
    s.output("shapes_out", element_type=TensorProto.INT64)


@pattern("bn1", "bn2")
def bias_is_shared(s: Sketch) -> None:
    """Two convolutions with weights of their own and one bias."""
    x, bias = s.input(2, 3, 6, 6), s.tensor("b", s.uniform(4))
    for number in (1, 2):
        weight = s.tensor(f"w{number}", s.uniform(4, 3, 3, 3))
        y = s.node("Conv", x, weight, bias, name=f"conv{number}")
        s.bn(y, 4, name=f"bn{number}")
    s.output("bn1_out", "bn2_out")


@pattern("bn")
def bias_is_the_gamma(s: Sketch) -> None:
    """One initializer is the bias of the convolution and the scale of the BatchNorm."""
    x, both = s.input(2, 3, 6, 6), s.tensor("both", s.gammas(4))
    y = s.node("Conv", x, s.tensor("w", s.uniform(4, 3, 3, 3)), both, name="conv")
    rest = [s.tensor("beta", s.uniform(4)), s.tensor("mean", s.uniform(4))]
    rest.append(s.tensor("var", s.uniform(4, low=0.4, high=1.6)))
    s.node("BatchNormalization", y, both, *rest, name="bn")
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def weight_depends_on_the_input(s: Sketch) -> None:
    """A convolution of a constant image with a weight that the network is given."""
    weight = s.input(4, 3, 3, 3, name="filters")
    image = s.tensor("image", s.uniform(2, 3, 6, 6))
    s.bn(s.node("Conv", image, weight, name="conv"), 4)
    s.output("bn_out")


# ---------------------------------------------------------------- optional inputs, other forms


@pattern("bn")
def gemm_transposed_input(s: Sketch) -> None:
    """transA: the channels of the input are on axis 0."""
    s.bn(s.gemm(s.input(3, 2), 3, 5, transA=1), 5)
    s.output("bn_out")


@pattern("bn", untouched=("gemm",))
def gemm_adds_an_activation(s: Sketch) -> None:
    """The third input is an activation, times beta."""
    x = s.input(2, 3)
    y = s.bn(s.gemm(x, 3, 5, name="first"), 5)
    s.node("Gemm", x, s.tensor("w", s.uniform(3, 5)), y, name="gemm", beta=0.5)
    s.node("Sigmoid", "gemm_out", name="end")
    s.output("end_out")


@pattern(kept={"bn": "graph-output"})
def gemm_bias_per_row(s: Sketch) -> None:
    """A bias that differs from row to row is not one of the outputs; the rest stays as it is."""
    bias = s.tensor("b", s.uniform(2, 1))
    x = s.node("Sigmoid", s.input(2, 3))
    y = s.node("Gemm", x, s.tensor("w", s.uniform(3, 5)), bias, name="gemm")
    s.bn(s.node("Sigmoid", y), 5)
    s.output("bn_out")


@pattern(kept={"bn": "nonlinear"})
def matmul_of_activations(s: Sketch) -> None:
    """No side of the product is constant."""
    x = s.input(2, 4, 4)
    s.node("MatMul", s.bn(x, 4), s.node("Sigmoid", x), name="product")
    s.output("product_out")


@pattern("bn")
def clip_without_lower_bound(s: Sketch) -> None:
    """The empty name is minus infinity."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    x = s.node("Clip", x, "", s.tensor("high", s.round(0.25)), name="clip")
    s.conv(s.bn(x, 4), 4, 2, name="head")
    s.output("head_out")


@pattern(kept={"bn": "nonlinear"}, untouched=("clip",))
def clip_with_a_computed_bound(s: Sketch) -> None:
    """The bound depends on the image."""
    x = s.input(2, 3, 6, 6)
    low = s.node("ReduceMean", x, axes=[0, 1, 2, 3], keepdims=0)
    s.node("Clip", s.bn(x, 3), low, name="clip")
    s.output("clip_out")


@pattern(kept={"bn": "nonlinear"}, untouched=("maximum",))
def larger_of_two_activations(s: Sketch) -> None:
    """Max of two activations is no clip."""
    x = s.input(2, 3, 6, 6)
    s.node("Max", s.bn(x, 3), s.node("Sigmoid", x), name="maximum")
    s.output("maximum_out")


@pattern(kept={"bn": "nonlinear"})
def thresholded_relu(s: Sketch) -> None:
    """Looks like a ReLU and jumps."""
    s.conv(s.node("ThresholdedRelu", s.bn(s.input(2, 3, 6, 6), 3), alpha=0.4), 3, 4)
    s.output("conv_out")


@pattern(kept={"bn": "nonlinear"})
def cast_to_integers_and_back(s: Sketch) -> None:
    """A cast to integers rounds: nothing passes."""
    x = s.node("Cast", s.bn(s.input(2, 3, 6, 6), 3), to=TensorProto.INT32)
    s.conv(s.node("Cast", x, to=s.element_type), 3, 4)
    s.output("conv_out")


@pattern("bn", opset=19, ir=9, has_twin=False)
def cast_to_another_float_and_back(s: Sketch) -> None:
    """Floats of another size hold the same values, but for rounding."""
    x = s.node("Cast", s.conv(s.input(2, 3, 6, 6), 3, 4), to=TensorProto.DOUBLE)
    s.bn(s.node("Cast", x, to=TensorProto.FLOAT), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def mask_of_dropout_is_read(s: Sketch) -> None:
    """At inference the mask is all true; the values pass, from an input to an output here."""
    x = s.node("Dropout", s.input(2, 3, 6, 6), name="drop", outputs=["dropped", "mask"])
    s.bn(x, 3)
    s.output("bn_out")
    s.output("mask", element_type=TensorProto.BOOL)


@pattern(kept={"bn": "padding"})
def pad_with_another_number(s: Sketch) -> None:
    """1 in the padding has to stay 1 behind a rescaling."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    pads = s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)
    s.bn(s.node("Pad", x, pads, s.tensor("one", s.round(1.0)), name="pad"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "padding"})
def pad_amounts_are_computed(s: Sketch) -> None:
    """How much is padded depends on the shape of another input."""
    x = s.bn(s.input(1, 3, 6, 6), 3)
    other = s.node("Shape", s.input("n", 1, name="other"))
    zeros = s.integers("zeros", 0, 0, 0, 0)
    amounts = s.node("Concat", zeros, s.integers("some", 0, 0), other, axis=0)
    s.conv(s.node("Pad", x, amounts, name="pad"), 3, 4)
    s.output("conv_out")


@pattern("bn", opset=18)
def pad_some_axes(s: Sketch) -> None:
    """Since opset 18 the axes may be named: here nothing but a reflection along the width."""
    pads = (s.integers("pads", 2, 1), "", s.integers("axes", -1))
    s.conv(s.node("Pad", s.bn(s.input(2, 3, 6, 6), 3), *pads, name="pad", mode="reflect"), 3, 4)
    s.output("conv_out")


@pattern("bn", has_twin=False)  # the reference's cubic weights sum to 1 in float32 only
def resize_to_sizes(s: Sketch) -> None:
    """Sizes in place of scales, cubic, which overshoots but sums to 1."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    sizes = s.integers("sizes", 2, 4, 7, 5)
    s.bn(s.node("Resize", x, "", "", sizes, name="resize", mode="cubic"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"})
def resize_crops_and_extrapolates(s: Sketch) -> None:
    """Outside of the image stands a number of its own."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    roi = s.tensor("roi", s.round([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5]))
    resize = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    resize["extrapolation_value"] = 10.0
    sizes = s.integers("sizes", 2, 4, 6, 6)
    s.bn(s.node("Resize", x, roi, "", sizes, name="resize", **resize), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"}, has_twin=False)
def resize_along_the_channels(s: Sketch) -> None:
    """Two channels become four, each mixed from its neighbours."""
    x = s.conv(s.input(1, 3, 6, 6), 3, 2)
    scales = s.tensor("scales", np.array([1, 2, 1, 1], dtype=np.float32))
    s.bn(s.node("Resize", x, "", scales, name="resize", mode="linear"), 4)
    s.output("bn_out")


@pattern("bn")
def average_pool_rounding_up(s: Sketch) -> None:
    """ceil_mode: the last window is cut off at the border, not padded with zeros."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 0}
    s.bn(s.node("AveragePool", s.conv(s.input(2, 3, 7, 7), 3, 4), name="pool", **pool), 4)
    s.output("bn_out")


@pattern("bn")
def channel_mean(s: Sketch) -> None:
    """All channels meet in one; the BatchNorm in front has a convolution to go into."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.node("ReduceMean", x, axes=[1], name="mean")
    s.output("mean_out")


@pattern("bn")
def gather_one_channel(s: Sketch) -> None:
    """A scalar index: the axis is gone, and the BatchNorm normalises what was axis 2."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    x = s.node("Gather", x, s.tensor("index", np.array(1, dtype=np.int64)), axis=2)
    s.bn(x, 4)
    s.output("bn_out")


@pattern("bn")
def axes_reversed(s: Sketch) -> None:
    """Transpose without perm: (N, C, L) becomes (L, C, N)."""
    s.bn(s.node("Transpose", s.conv(s.input(2, 3, 9), 3, 4, rank=1)), 4)
    s.output("bn_out")


@pattern("bn")
def expand_to_shape_of_another(s: Sketch) -> None:
    """A value per channel is expanded to the size of an image."""
    x = s.input(2, 3, 6, 6)
    y = s.conv(x, 3, 4, name="image")
    pooled = s.conv(s.node("GlobalAveragePool", x), 3, 4, 1)
    wide = s.node("Expand", pooled, s.node("Shape", y))
    s.bn(s.node("Add", wide, y, name="add"), 4)
    s.output("bn_out")


@pattern("mul", "bn")
def factor_zero(s: Sketch) -> None:
    """A Mul by 0 in one channel is a zero gamma by another name."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    factor = s.tensor("c", s.round([0.5, 0.0, -1.5, 2.0]).reshape(1, 4, 1, 1))
    s.bn(s.node("Mul", x, factor, name="mul"), 4)
    s.output("bn_out")


@pattern(untouched=("div",))
def divided_by_zero(s: Sketch) -> None:
    """Infinite factors are left alone."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    divisor = s.tensor("c", s.round([0.5, 0.0, -1.5, 2.0]).reshape(1, 4, 1, 1))
    s.node("Div", x, divisor, name="div")
    s.output("div_out")
