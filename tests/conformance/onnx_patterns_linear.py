"""Patterns of linear ops beside a BatchNorm: convolutions, transposed ones, matrices."""

from __future__ import annotations

import numpy as np

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch


@pattern("bn")
def conv_bn(s: Sketch) -> None:
    """The pattern that every tool knows; padding does no harm behind the convolution."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4, pad=1, bias=False), 4)
    s.output("bn_out")


@pattern("bn")
def conv_bias_bn_relu(s: Sketch) -> None:
    """With a bias, and with something behind."""
    s.node("Relu", s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4), name="relu")
    s.output("relu_out")


@pattern("bn")
def conv_empty_bias_bn(s: Sketch) -> None:
    """The empty name stands for a bias that is not there."""
    weight = s.tensor("w", s.uniform(4, 3, 3, 3))
    s.bn(s.node("Conv", s.input(2, 3, 6, 6), weight, "", name="conv"), 4)
    s.output("bn_out")


@pattern("bn")
def conv_grouped_bn(s: Sketch) -> None:
    """Three groups, with stride and dilation."""
    conv = {"groups": 3, "strides": [2, 2], "dilations": [2, 2]}
    s.bn(s.conv(s.input(2, 6, 9, 9), 6, 9, pad=2, **conv), 9)
    s.output("bn_out")


@pattern("bn")
def conv_depthwise_bn(s: Sketch) -> None:
    """One input channel per group, two outputs each."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 6, pad=1, groups=3), 6)
    s.output("bn_out")


@pattern("bn")
def conv_1d_bn(s: Sketch) -> None:
    """One spatial axis."""
    s.bn(s.conv(s.input(2, 3, 9), 3, 4, rank=1), 4)
    s.output("bn_out")


@pattern("bn")
def conv_3d_bn(s: Sketch) -> None:
    """Three spatial axes."""
    s.bn(s.conv(s.input(2, 2, 4, 5, 4), 2, 3, rank=3), 3)
    s.output("bn_out")


@pattern("bn")
def bn_conv(s: Sketch) -> None:
    """In front of an unpadded convolution."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3), 3, 4, bias=False)
    s.output("conv_out")


@pattern("bn")
def bn_conv_grouped(s: Sketch) -> None:
    """In front of a grouped one: the inputs are counted within the group."""
    s.conv(s.bn(s.input(2, 6, 6, 6), 6), 6, 4, groups=2)
    s.output("conv_out")


@pattern("bn")
def bn_conv_auto_pad_valid(s: Sketch) -> None:
    """VALID pads nothing."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3), 3, 4, auto_pad="VALID")
    s.output("conv_out")


@pattern("bn")
def bn_conv_auto_pad_same_1x1(s: Sketch) -> None:
    """A kernel of size 1 needs no padding to keep the size."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3), 3, 4, 1, auto_pad="SAME_UPPER")
    s.output("conv_out")


@pattern("bn")
def conv_transpose_bn(s: Sketch) -> None:
    """The output channels are the second axis of the weight."""
    conv = {"op": "ConvTranspose", "strides": [2, 2], "pad": 1}
    s.bn(s.conv(s.input(2, 3, 5, 5), 3, 4, 4, **conv), 4)
    s.output("bn_out")


@pattern("bn")
def conv_transpose_square_bn(s: Sketch) -> None:
    """As many inputs as outputs: the wrong axis would fit too."""
    s.bn(s.conv(s.input(2, 4, 5, 5), 4, 4, 2, op="ConvTranspose", bias=False), 4)
    s.output("bn_out")


@pattern("bn")
def conv_transpose_grouped_bn(s: Sketch) -> None:
    """The second axis counts within the group of the input channel."""
    conv = {"op": "ConvTranspose", "groups": 2, "strides": [2, 2]}
    s.bn(s.conv(s.input(2, 4, 5, 5), 4, 6, **conv), 6)
    s.output("bn_out")


@pattern("bn")
def conv_transpose_depthwise_bn(s: Sketch) -> None:
    """One input and one output per group."""
    conv = {"op": "ConvTranspose", "groups": 4, "strides": [2, 2]}
    s.bn(s.conv(s.input(2, 4, 5, 5), 4, 4, 2, **conv), 4)
    s.output("bn_out")


@pattern("bn")
def bn_conv_transpose_1x1(s: Sketch) -> None:
    """With kernel and stride 1 every output sees the same taps."""
    s.conv(s.bn(s.input(2, 3, 5, 5), 3), 3, 4, 1, op="ConvTranspose")
    s.output("conv_out")


@pattern("bn")
def gemm_bn(s: Sketch) -> None:
    """A fully connected layer, the weight (in, out)."""
    s.bn(s.gemm(s.input(2, 3), 3, 5), 5)
    s.output("bn_out")


@pattern("bn")
def gemm_transposed_bn(s: Sketch) -> None:
    """The weight (out, in), as PyTorch writes it."""
    s.bn(s.gemm(s.input(2, 4), 4, 4, transB=1), 4)
    s.output("bn_out")


@pattern("bn")
def gemm_alpha_beta_bn(s: Sketch) -> None:
    """alpha and beta scale the weight and the bias."""
    s.bn(s.gemm(s.input(2, 3), 3, 5, alpha=0.5, beta=-2.0), 5)
    s.output("bn_out")


@pattern("bn")
def gemm_beta_zero_bn(s: Sketch) -> None:
    """beta = 0 switches the bias off: a new bias has to be seen."""
    s.bn(s.gemm(s.input(2, 3), 3, 5, beta=0.0), 5)
    s.output("bn_out")


@pattern("bn")
def gemm_scalar_bias_bn(s: Sketch) -> None:
    """A bias of one number for all outputs."""
    weight, bias = s.tensor("w", s.uniform(3, 5)), s.tensor("b", s.uniform(1))
    s.bn(s.node("Gemm", s.input(2, 3), weight, bias, name="gemm"), 5)
    s.output("bn_out")


@pattern("bn")
def gemm_without_bias_bn(s: Sketch) -> None:
    """The third input is optional, and has to be born."""
    s.bn(s.gemm(s.input(2, 3), 3, 5, bias=False), 5)
    s.output("bn_out")


@pattern("bn")
def bn_gemm(s: Sketch) -> None:
    """In front of a fully connected layer; alpha multiplies the shift too."""
    s.gemm(s.bn(s.input(2, 3), 3), 3, 5, alpha=0.5, beta=3.0)
    s.output("gemm_out")


@pattern("bn")
def bn_global_pool_flatten_gemm(s: Sketch) -> None:
    """The end of many networks."""
    x = s.node("GlobalAveragePool", s.bn(s.input(2, 3, 4, 4), 3))
    s.gemm(s.node("Flatten", x), 3, 5)
    s.output("gemm_out")


@pattern("bn")
def matmul_add_bn(s: Sketch) -> None:
    """A matrix on the right, its bias an Add."""
    x = s.node("MatMul", s.input(2, 3), s.tensor("w", s.uniform(3, 5)), name="matmul")
    s.bn(s.node("Add", x, s.tensor("b", s.uniform(5)), name="bias"), 5)
    s.output("bn_out")


@pattern("bn")
def bn_matmul_add(s: Sketch) -> None:
    """In front of a matrix with a bias."""
    x = s.node("MatMul", s.bn(s.input(2, 3), 3), s.tensor("w", s.uniform(3, 5)), name="matmul")
    s.node("Add", s.tensor("b", s.uniform(5)), x, name="bias")
    s.output("bias_out")


@pattern("bn")
def matmul_left_bn(s: Sketch) -> None:
    """A matrix on the left mixes axis 1, which is the BatchNorm's."""
    x = s.node("MatMul", s.tensor("w", s.uniform(5, 4)), s.input(2, 4, 4), name="matmul")
    b = s.tensor("b", s.uniform(5, 1))
    s.bn(s.node("Add", x, b, name="bias"), 5)
    s.output("bn_out")


@pattern("bn")
def matmul_transposed_bn(s: Sketch) -> None:
    """A matrix on the last axis, then the axes exchanged: channels meet the BatchNorm."""
    x = s.node("MatMul", s.input(2, 4, 3), s.tensor("w", s.uniform(3, 4)), name="matmul")
    x = s.node("Add", x, s.tensor("b", s.uniform(4)), name="bias")
    s.bn(s.node("Transpose", x, perm=[0, 2, 1]), 4)
    s.output("bn_out")


@pattern("bn")
def conv_bn_zero_gamma(s: Sketch) -> None:
    """A constant channel: the convolution's weights for it become 0."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, gamma=[0.7, 0.0, -1.1, 0.0])
    s.output("bn_out")


@pattern("bn")
def bn_zero_gamma_conv(s: Sketch) -> None:
    """A constant channel: the convolution behind takes it into its bias."""
    s.conv(s.bn(s.input(2, 3, 6, 6), 3, gamma=[0.7, 0.0, -1.1]), 3, 4)
    s.output("conv_out")


@pattern("bn")
def conv_bn_zero_variance(s: Sketch) -> None:
    """epsilon alone stands under the root, as the node says it, not as the default is."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, var=[0.0, 0.5, 0.0, 1.0], epsilon=0.02)
    s.output("bn_out")


@pattern("bn1", "bn2")
def conv_bn_bn(s: Sketch) -> None:
    """Two in a row."""
    s.bn(s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4, name="bn1"), 4, name="bn2")
    s.output("bn2_out")


@pattern("bn1", "bn2")
def bns_share_their_constants(s: Sketch) -> None:
    """Two BatchNorms with the very same initializers."""
    x = s.input(2, 3, 6, 6)
    s.bn(s.conv(x, 3, 4, name="conv1"), 4, name="bn1")
    names = s.nodes[-1].input[1:]
    y = s.conv(x, 3, 4, name="conv2")
    s.node("BatchNormalization", y, *names, name="bn2", epsilon=0.1)
    s.output("bn1_out", "bn2_out")


@pattern("bn1", kept={"bn2": "graph-output"})
def kept_bn_shares_constants_with_removed(s: Sketch) -> None:
    """The one that stays needs its constants as they are."""
    x = s.input(2, 3, 6, 6)
    s.bn(s.conv(x, 3, 3, name="conv1"), 3, name="bn1")
    names = s.nodes[-1].input[1:]
    s.node("BatchNormalization", s.node("Sigmoid", x), *names, name="bn2")
    s.output("bn1_out", "bn2_out")


@pattern("bn1", "bn3", kept={"bn2": "graph-output", "bn4": "graph-output"})
def kept_bns_share_constants_and_need_other_edits(s: Sketch) -> None:
    """Two stay, with the same initializers: one absorbs bn1, the other must not notice."""
    x = s.input(2, 3, 6, 6)
    s.bn(s.bn(x, 3, name="bn1"), 3, name="bn2")
    s.node("Relu", s.bn(s.conv(x, 3, 3, name="conv3"), 3, name="bn3"), name="relu")
    s.node("BatchNormalization", s.node("Sigmoid", x), *s.nodes[1].input[1:], name="bn4")
    s.output("bn2_out", "relu_out", "bn4_out")


@pattern("bn", dtype=np.float16, has_twin=False, opset=15)
def conv_float16_bn_statistics_float32(s: Sketch) -> None:
    """Since opset 15 the statistics may be wider than the activations."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    wide = np.float32
    names = [
        s.tensor("gamma", s.gammas(4)),
        s.tensor("beta", s.uniform(4)),
        s.tensor("mean", s.uniform(4).astype(wide)),
        s.tensor("var", s.uniform(4, low=0.4, high=1.6).astype(wide)),
    ]
    s.node("BatchNormalization", x, *names, name="bn", epsilon=1e-3)
    s.output("bn_out")


@pattern("bn", dtype=np.float16, has_twin=False)
def conv_bn_float16(s: Sketch) -> None:
    """Computed in float64, rounded once."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.output("bn_out")
