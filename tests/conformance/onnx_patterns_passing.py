"""Patterns in which a rescaling passes other ops: clips, pools, sums, gates, pads, signs."""

from __future__ import annotations

import numpy as np

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch

# ---------------------------------------------------------------- clip, homogeneous


@pattern("bn")
def conv_relu_bn_padded_conv(s: Sketch) -> None:
    """The shift goes back through the ReLU, which becomes a Max or Min per channel."""
    x = s.node("Relu", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), name="relu")
    s.conv(s.bn(x, 4), 4, 2, pad=1)
    s.output("conv_out")


@pattern("bn")
def conv_relu_bn_conv(s: Sketch) -> None:
    """Without padding the ReLU need not change."""
    x = s.node("Relu", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), name="relu")
    s.conv(s.bn(x, 4), 4, 2)
    s.output("conv_out")


@pattern("bn")
def conv_relu_bn(s: Sketch) -> None:
    """The output is given, so the ReLU takes bounds: both signs of gamma, both kinds."""
    s.bn(s.node("Relu", s.conv(s.input(2, 3, 6, 6), 3, 4), name="relu"), 4)
    s.output("bn_out")


@pattern("bn")
def bn_relu_conv(s: Sketch) -> None:
    """In front of an unpadded convolution with a ReLU between."""
    s.conv(s.node("Relu", s.bn(s.input(2, 3, 6, 6), 3), name="relu"), 3, 4)
    s.output("conv_out")


@pattern("bn", clip="always")
def conv_clip_bn_padded_conv_always(s: Sketch) -> None:
    """Two bounds per channel, as asked for."""
    bounds = (s.tensor("low", s.round(-0.2)), s.tensor("high", s.round(0.3)))
    x = s.node("Clip", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), *bounds, name="clip")
    s.conv(s.bn(x, 4), 4, 2, pad=1)
    s.output("conv_out")


@pattern("bn")
def conv_bn_clip(s: Sketch) -> None:
    """In front of the Clip stands a convolution that takes all of it."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.node("Clip", x, s.tensor("low", s.round(0.0)), s.tensor("high", s.round(0.5)), name="clip")
    s.output("clip_out")


@pattern("bn", opset=9)
def conv_clip_attributes_bn_conv(s: Sketch) -> None:
    """Before opset 11 the bounds are attributes."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem")
    s.conv(s.bn(s.node("Clip", x, name="clip", min=0.0, max=0.5), 4), 4, 2)
    s.output("conv_out")


@pattern("bn")
def conv_leaky_relu_bn_conv(s: Sketch) -> None:
    """Behind a LeakyReLU the convolution takes it."""
    x = s.node("LeakyRelu", s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), alpha=0.2)
    s.conv(s.bn(x, 4), 4, 2)
    s.output("conv_out")


@pattern("bn")
def conv_bn_prelu(s: Sketch) -> None:
    """In front of a PReLU stands a convolution."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.node("PRelu", x, s.tensor("slope", s.uniform(4, 1, 1)), name="prelu")
    s.output("prelu_out")


# ---------------------------------------------------------------- max, mean


@pattern("bn")
def conv_max_pool_bn(s: Sketch) -> None:
    """Positive gammas pass a max pooling, the shift with them, the border too."""
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    x = s.node("MaxPool", s.conv(s.input(2, 3, 6, 6), 3, 4), name="pool", **pool)
    s.bn(x, 4, positive=True)
    s.output("bn_out")


@pattern("bn")
def conv_max_pool_bn_padded_conv(s: Sketch) -> None:
    """The sign goes on into the next convolution, the shift back into the first."""
    x = s.node("MaxPool", s.conv(s.input(2, 3, 7, 7), 3, 4, name="stem"), kernel_shape=[2, 2])
    s.conv(s.bn(x, 4), 4, 2, pad=1)
    s.output("conv_out")


@pattern("bn")
def conv_bn_max_pool(s: Sketch) -> None:
    """In front of the pooling."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.node("MaxPool", x, name="pool", kernel_shape=[2, 2])
    s.output("pool_out")


@pattern("bn")
def conv_average_pool_bn(s: Sketch) -> None:
    """A mean over values that are there."""
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 0}
    s.bn(s.node("AveragePool", s.conv(s.input(2, 3, 6, 6), 3, 4), name="pool", **pool), 4)
    s.output("bn_out")


@pattern("bn")
def conv_global_average_pool_bn(s: Sketch) -> None:
    """A mean over all of the image."""
    s.bn(s.node("GlobalAveragePool", s.conv(s.input(2, 3, 6, 6), 3, 4)), 4)
    s.output("bn_out")


@pattern("bn")
def conv_global_max_pool_bn(s: Sketch) -> None:
    """The largest of all of the image."""
    s.bn(s.node("GlobalMaxPool", s.conv(s.input(2, 3, 6, 6), 3, 4)), 4, positive=True)
    s.output("bn_out")


@pattern("bn")
def conv_reduce_mean_bn(s: Sketch) -> None:
    """The axes disappear: the BatchNorm sees (N, C)."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("ReduceMean", x, axes=[2, -1], keepdims=0), 4)
    s.output("bn_out")


@pattern("bn", opset=18)
def conv_reduce_max_bn(s: Sketch) -> None:
    """Since opset 18 the axes are an input."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("ReduceMax", x, s.integers("axes", 2, 3), keepdims=1), 4, positive=True)
    s.output("bn_out")


@pattern("bn")
def conv_resize_bn(s: Sketch) -> None:
    """Linear interpolation has weights that sum to 1."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    scales = s.tensor("scales", np.array([1, 1, 2, 2], dtype=np.float32))
    s.bn(s.node("Resize", x, "", scales, name="resize", mode="linear"), 4)
    s.output("bn_out")


@pattern("bn", opset=9)
def conv_upsample_bn(s: Sketch) -> None:
    """What Resize was called before opset 10."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    scales = s.tensor("scales", np.array([1, 1, 2, 2], dtype=np.float32))
    s.bn(s.node("Upsample", x, scales, name="upsample", mode="nearest"), 4)
    s.output("bn_out")


# ---------------------------------------------------------------- sum, gate, sign, pad


@pattern("bn")
def convs_add_bn(s: Sketch) -> None:
    """Both summands take it."""
    x = s.input(2, 3, 6, 6)
    y = s.node("Add", s.conv(x, 3, 4, name="conv1"), s.conv(x, 3, 4, name="conv2"), name="add")
    s.bn(y, 4)
    s.output("bn_out")


@pattern("bn1", "bn2")
def bns_subtracted(s: Sketch) -> None:
    """The shifts of a difference are subtracted."""
    x = s.input(2, 3, 6, 6)
    left = s.bn(s.conv(x, 3, 4, name="conv1"), 4, name="bn1")
    right = s.bn(s.conv(x, 3, 4, name="conv2"), 4, name="bn2")
    s.node("Relu", s.node("Sub", left, right, name="sub"), name="relu")
    s.output("relu_out")


@pattern("bn")
def three_convs_sum_bn(s: Sketch) -> None:
    """Sum of three, of which one is broadcast over the image."""
    x = s.input(2, 3, 6, 6)
    pooled = s.node("GlobalAveragePool", x)
    terms = [s.conv(x, 3, 4, name="conv1"), s.conv(x, 3, 4, name="conv2")]
    terms.append(s.conv(pooled, 3, 4, 1, name="conv3"))
    s.bn(s.node("Sum", *terms, name="sum"), 4)
    s.output("bn_out")


@pattern("bn1", "bn2", "bn3")
def repvgg_block(s: Sketch) -> None:
    """Two convolutions and the identity, each with a BatchNorm, are added."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem")
    wide = s.bn(s.conv(x, 4, 4, pad=1, bias=False, name="conv3"), 4, name="bn1")
    narrow = s.bn(s.conv(x, 4, 4, 1, bias=False, name="conv1"), 4, name="bn2")
    total = s.node("Add", s.node("Add", wide, narrow), s.bn(x, 4, name="bn3"))
    s.conv(s.node("Relu", total, name="relu"), 4, 2, pad=1, name="head")
    s.output("head_out")


@pattern("bn1", "bn2", "bn3", "bn4", "bn5")
def pre_activation(s: Sketch) -> None:
    """Two blocks of BatchNorm, ReLU, padded convolution on a residual stream, and an end."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, pad=1, name="stem")
    for block in (0, 1):
        y = x
        for part in (1, 2):
            number = 2 * block + part
            y = s.node("Relu", s.bn(y, 4, name=f"bn{number}"), name=f"relu{number}")
            y = s.conv(y, 4, 4, pad=1, bias=False, name=f"conv{number}")
        x = s.node("Add", x, y, name=f"add{block}")
    x = s.node("Relu", s.bn(x, 4, name="bn5"), name="relu5")
    s.gemm(s.node("Flatten", s.node("GlobalAveragePool", x)), 4, 3)
    s.output("gemm_out")


@pattern("bn1", "bn2", "bn3", "bn4", "bn5")
def dense_block(s: Sketch) -> None:
    """DenseNet: every layer reads, through a BatchNorm of its own, all that came before."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, pad=1, name="stem")
    for number in (1, 3):
        width = 3 + number
        y = s.node("Relu", s.bn(x, width, name=f"bn{number}"), name=f"relu{number}")
        y = s.conv(y, width, 3, 1, name=f"conv{number}")
        y = s.node("Relu", s.bn(y, 3, name=f"bn{number + 1}"), name=f"relu{number + 1}")
        y = s.conv(y, 3, 2, pad=1, name=f"conv{number + 1}")
        x = s.node("Concat", x, y, axis=1, name=f"concat{number}")
    x = s.node("GlobalAveragePool", s.node("Relu", s.bn(x, 8, name="bn5"), name="relu5"))
    s.gemm(s.node("Flatten", x), 8, 3)
    s.output("gemm_out")


@pattern("bn")
def squeeze_excite(s: Sketch) -> None:
    """The BatchNorm in front of a gate goes into the convolution in front of it."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    gate = s.node("GlobalAveragePool", x)
    gate = s.node("Relu", s.conv(gate, 4, 2, 1, name="squeeze"), name="relu")
    gate = s.node("Sigmoid", s.conv(gate, 2, 4, 1, name="excite"), name="sigmoid")
    s.conv(s.node("Mul", x, gate, name="gate"), 4, 3, name="head")
    s.output("head_out")


@pattern("bn")
def gate_bn_conv(s: Sketch) -> None:
    """Behind a gate the shift goes on, into an unpadded convolution."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem")
    s.conv(s.bn(s.node("Mul", x, s.node("Sigmoid", x), name="gate"), 4), 4, 2)
    s.output("conv_out")


@pattern("bn")
def conv_bn_sign_conv(s: Sketch) -> None:
    """A sign sees no positive scale; the convolution in front takes the rest."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), 4)
    s.conv(s.node("Sign", x, name="sign"), 4, 2, pad=1)
    s.output("conv_out")


@pattern("bn")
def conv_bn_pad_conv(s: Sketch) -> None:
    """In front of a Pad stands a convolution."""
    x = s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem"), 4)
    s.conv(s.node("Pad", x, s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), name="pad"), 4, 2)
    s.output("conv_out")


@pattern("bn")
def bn_pad_reflect_conv(s: Sketch) -> None:
    """Reflected values are values: the shift passes."""
    pads = s.integers("pads", 0, 0, 1, 2, 0, 0, 2, 1)
    s.conv(s.node("Pad", s.bn(s.input(2, 3, 6, 6), 3), pads, name="pad", mode="reflect"), 3, 4)
    s.output("conv_out")


@pattern("bn")
def bn_pad_edge_conv(s: Sketch) -> None:
    """So are repeated ones."""
    pads = s.integers("pads", 0, 0, 1, 2, 0, 0, 2, 1)
    s.conv(s.node("Pad", s.bn(s.input(2, 3, 6, 6), 3), pads, name="pad", mode="edge"), 3, 4)
    s.output("conv_out")


@pattern("bn", opset=19, ir=9)
def bn_pad_wrap_conv(s: Sketch) -> None:
    """And those from the other side, since opset 19."""
    pads = s.integers("pads", 0, 0, 1, 2, 0, 0, 2, 1)
    s.conv(s.node("Pad", s.bn(s.input(2, 3, 6, 6), 3), pads, name="pad", mode="wrap"), 3, 4)
    s.output("conv_out")


@pattern("bn")
def conv_pad_negative_bn(s: Sketch) -> None:
    """Negative pads crop, which asks for nothing."""
    x = s.conv(s.input(2, 3, 8, 8), 3, 4)
    s.bn(s.node("Pad", x, s.integers("pads", 0, 0, -1, -1, 0, 0, -1, 0), name="pad"), 4)
    s.output("bn_out")


# ---------------------------------------------------------------- sums that see one tensor twice


@pattern("bn")
def conv_bn_added_to_conv(s: Sketch) -> None:
    """x + bn(x) is one affine step of x, which the head takes in."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.conv(s.node("Add", x, s.bn(x, 4), name="add"), 4, 2, 1, name="head")
    s.output("head_out")


@pattern("bn")
def bn_added_to_depthwise_conv(s: Sketch) -> None:
    """conv(x) + bn(x): the kernel's centre takes the factor, and the bias the summand."""
    x = s.node("Sigmoid", s.input(2, 4, 6, 6), name="start")
    y = s.conv(x, 4, 4, 3, pad=1, groups=4, name="depthwise")
    z = s.node("Sigmoid", s.node("Add", y, s.bn(x, 4), name="add"), name="end")
    s.output(z)
