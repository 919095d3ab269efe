"""Patterns in which values are moved between convolution and BatchNorm."""

from __future__ import annotations

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch


@pattern("bn")
def convs_concat_bn(s: Sketch) -> None:
    """Each of two convolutions takes its part."""
    x = s.input(2, 3, 6, 6)
    parts = [s.conv(x, 3, 4, name="conv1"), s.conv(x, 3, 2, name="conv2")]
    s.bn(s.node("Concat", *parts, name="concat", axis=1), 6)
    s.output("bn_out")


@pattern("bn")
def convs_concat_in_space_bn(s: Sketch) -> None:
    """Along another axis the two share their channels; a negative axis counts from the end."""
    x = s.input(2, 3, 6, 6)
    parts = [s.conv(x, 3, 4, name="conv1"), s.conv(x, 3, 4, name="conv2")]
    s.bn(s.node("Concat", *parts, name="concat", axis=-1), 4)
    s.output("bn_out")


@pattern("bn")
def bn_flatten_gemm(s: Sketch) -> None:
    """Every pixel of a channel meets other weights."""
    s.gemm(s.node("Flatten", s.bn(s.input(2, 3, 2, 2), 3), name="flatten"), 12, 4)
    s.output("gemm_out")


@pattern("bn")
def conv_reshape_bn_across_gemm(s: Sketch) -> None:
    """A BatchNorm over channels times space: the fully connected layer takes it."""
    x = s.node("Reshape", s.conv(s.input(2, 3, 4, 4), 3, 4), s.integers("shape", 0, -1))
    s.gemm(s.bn(x, 16), 16, 3)
    s.output("gemm_out")


@pattern("bn")
def matmul_bn_other_axis_gemm(s: Sketch) -> None:
    """A BatchNorm across the matrix's channels: only the layer behind can take it."""
    x = s.node("MatMul", s.input(2, 4, 3), s.tensor("w", s.uniform(3, 4)), name="matmul")
    s.gemm(s.node("Flatten", s.bn(x, 4)), 16, 3)
    s.output("gemm_out")


@pattern("bn")
def conv_reshape_group_bn(s: Sketch) -> None:
    """The axis of 4 is cut into 2 x 2 and put together again."""
    x = s.conv(s.input(2, 3, 4, 4), 3, 4)
    x = s.node("Reshape", x, s.integers("cut", 0, 2, 2, 2, 2))
    s.bn(s.node("Reshape", x, s.integers("joined", 2, 4, 2, -1)), 4)
    s.output("bn_out")


@pattern("bn")
def conv_shuffle_bn(s: Sketch) -> None:
    """ShuffleNet: reshape, transpose, reshape back."""
    x = s.node("Reshape", s.conv(s.input(2, 3, 4, 4), 3, 6), s.integers("cut", 2, 2, 3, 2, 2))
    x = s.node("Transpose", x, perm=[0, 2, 1, 3, 4])
    s.bn(s.node("Reshape", x, s.integers("joined", 2, 6, 2, 2)), 6)
    s.output("bn_out")


@pattern("bn")
def conv_squeeze_unsqueeze_bn(s: Sketch) -> None:
    """Axes of length 1 come and go."""
    x = s.node("GlobalAveragePool", s.conv(s.input(2, 3, 4, 4), 3, 4))
    x = s.node("Squeeze", x, s.integers("out", 2, 3))
    s.bn(s.node("Unsqueeze", x, s.integers("in", 2, -1)), 4)
    s.output("bn_out")


@pattern("bn", opset=11)
def conv_squeeze_attribute_bn(s: Sketch) -> None:
    """Before opset 13 the axes are attributes."""
    x = s.node("GlobalAveragePool", s.conv(s.input(2, 3, 4, 4), 3, 4))
    x = s.node("Squeeze", x, axes=[2, 3])
    s.bn(s.node("Unsqueeze", x, axes=[2]), 4)
    s.output("bn_out")


@pattern("bn1", "bn2")
def conv_split_bns(s: Sketch) -> None:
    """Two BatchNorms, each on its own part of the channels."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 6)
    parts = ["left", "right"]
    s.node("Split", x, s.integers("sizes", 4, 2), name="split", outputs=parts, axis=1)
    s.bn("left", 4, name="bn1")
    s.bn("right", 2, name="bn2")
    s.output("bn1_out", "bn2_out")


@pattern("bn")
def conv_slice_bn(s: Sketch) -> None:
    """Every second channel, from the last one to the front."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 6)
    limits = [s.integers("starts", -1), s.integers("ends", -100)]
    limits += [s.integers("axes", 1), s.integers("steps", -2)]
    s.bn(s.node("Slice", x, *limits, name="slice"), 3)
    s.output("bn_out")


@pattern("bn", opset=9)
def conv_slice_attributes_bn(s: Sketch) -> None:
    """Before opset 10 the limits are attributes."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 6)
    s.bn(s.node("Slice", x, name="slice", starts=[1, 0], ends=[5, -1], axes=[1, 3]), 4)
    s.output("bn_out")


@pattern("bn")
def conv_gather_bn(s: Sketch) -> None:
    """Channels in another order, one of them twice, by constant indices."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.conv(s.bn(s.node("Gather", x, s.integers("order", 3, 0, 0, -2), axis=1), 4), 4, 2, name="end")
    s.output("end_out")


@pattern(kept={"bn": "graph-output"})
def conv_gather_twice_bn(s: Sketch) -> None:
    """One channel is taken twice and needs two scales, with nothing behind to take the rest."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Gather", x, s.integers("order", 3, 0, 0, -2), axis=1), 4)
    s.output("bn_out")


@pattern("bn")
def conv_transpose_axes_bn(s: Sketch) -> None:
    """Channels to the end and back."""
    x = s.node("Transpose", s.conv(s.input(2, 3, 6, 6), 3, 4), perm=[0, 2, 3, 1])
    s.bn(s.node("Transpose", x, perm=[0, 3, 1, 2]), 4)
    s.output("bn_out")


@pattern("bn")
def conv_depth_to_space_bn(s: Sketch) -> None:
    """Twelve channels become three: four of the convolution's share a constant."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 12)
    s.bn(s.node("DepthToSpace", x, blocksize=2, mode="CRD"), 3)
    s.output("bn_out")


@pattern("bn")
def conv_depth_to_space_dcr_bn(s: Sketch) -> None:
    """The other order of the axes."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 12)
    s.bn(s.node("DepthToSpace", x, blocksize=2), 3)
    s.output("bn_out")


@pattern("bn")
def bn_space_to_depth_conv(s: Sketch) -> None:
    """Three channels become twelve: the convolution takes them."""
    x = s.node("SpaceToDepth", s.bn(s.input(2, 3, 6, 6), 3), blocksize=2)
    s.conv(x, 12, 4)
    s.output("conv_out")


@pattern("bn")
def conv_identity_dropout_bn(s: Sketch) -> None:
    """Ops that do nothing at inference."""
    x = s.node("Identity", s.conv(s.input(2, 3, 6, 6), 3, 4))
    s.bn(s.node("Dropout", x, name="dropout"), 4)
    s.output("bn_out")


@pattern("bn")
def conv_expand_bn(s: Sketch) -> None:
    """Copies of a value are stored alike."""
    x = s.node("GlobalAveragePool", s.conv(s.input(2, 3, 6, 6), 3, 4))
    s.bn(s.node("Expand", x, s.integers("shape", 2, 4, 3, 3)), 4)
    s.output("bn_out")


@pattern(kept={"bn": "nonlinear"})
def conv_gather_dynamic_bn(s: Sketch) -> None:
    """Which channel comes out where is known at run time alone."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    means = s.node("ReduceMean", x, axes=[0, 2, 3], keepdims=0)
    s.node("TopK", means, s.integers("k", 4), outputs=["values", "order"])
    s.bn(s.node("Gather", x, "order", name="gather", axis=1), 4)
    s.output("bn_out")
