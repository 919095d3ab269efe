"""Patterns of ONNX's many spellings: affine steps as arithmetic, where constants come from, QDQ,
opsets, dynamic shapes, initializers that the caller may override.
"""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from tests.conformance.onnx_patterns import pattern
from tests.conformance.onnx_sketch import Sketch

# ---------------------------------------------------------------- what must stay


@pattern(untouched=("gate",))
def constant_of_higher_rank(s: Sketch) -> None:
    """A constant of rank 5 makes the product one of rank 5: it is no step that could just go."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.node("Mul", x, s.tensor("c", s.uniform(1, 1, 4, 1, 1, low=0.5, high=1.5)), name="gate")
    s.output("gate_out")


@pattern(untouched=("gate",))
def constant_that_widens(s: Sketch) -> None:
    """The product is larger than the activation: the step makes values."""
    x = s.node("GlobalAveragePool", s.conv(s.input(2, 3, 6, 6), 3, 4))
    s.node("Mul", x, s.tensor("c", s.uniform(1, 4, 3, 3, low=0.5, high=1.5)), name="gate")
    s.output("gate_out")


@pattern(untouched=("divide",))
def constant_divided_by_activation(s: Sketch) -> None:
    """c / x is no affine step."""
    x = s.node("Sigmoid", s.conv(s.input(2, 3, 6, 6), 3, 4))
    s.node("Div", s.channels("c", 4), x, name="divide")
    s.output("divide_out")


@pattern(kept={"add": "padding"})
def add_padded_conv(s: Sketch) -> None:
    """A summand is a shift like that of a BatchNorm."""
    x = s.node("Add", s.input(2, 3, 6, 6), s.channels("c", 3), name="add")
    s.conv(x, 3, 4, pad=1)
    s.output("conv_out")


@pattern(kept={"bn": "graph-output"})
def conv_weight_can_be_overridden(s: Sketch) -> None:
    """Since IR 4 an initializer that is an input is only a default: the caller may pass another."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.input(4, 3, 3, 3, name="conv_w")
    s.input(4, name="conv_b")
    s.output("bn_out")


@pattern(kept={"bn": "overridable"})
def bn_statistics_can_be_overridden(s: Sketch) -> None:
    """The same, of a mean: the BatchNorm is not constant."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.input(4, name="bn_mean")
    s.output("bn_out")


@pattern(kept={"bn": "not-constant"})
def bn_statistics_are_computed(s: Sketch) -> None:
    """The mean depends on the input."""
    x = s.input(2, 3, 6, 6)
    y = s.conv(x, 3, 4)
    mean = s.node("ReduceMean", y, axes=[0, 2, 3], keepdims=0)
    names = [s.tensor("gamma", s.gammas(4)), s.tensor("beta", s.uniform(4)), mean]
    names.append(s.tensor("var", s.uniform(4, low=0.4, high=1.6)))
    s.node("BatchNormalization", y, *names, name="bn")
    s.output("bn_out")


@pattern(kept={"bn": "fixed-weight"})
def conv_weight_is_computed(s: Sketch) -> None:
    """A weight that depends on the input."""
    x = s.input(1, 3, 6, 6)
    mean = s.node("ReduceMean", x, axes=[0, 1, 2, 3], keepdims=0)
    weight = s.node("Mul", s.tensor("w", s.uniform(4, 3, 3, 3)), mean)
    s.bn(s.node("Conv", x, weight, name="conv"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"}, opset=7)
def conv_bn_per_pixel(s: Sketch) -> None:
    """spatial=0: statistics of every pixel, which no convolution can take."""
    x = s.conv(s.input(2, 3, 4, 4), 3, 4)
    shape = (4, 2, 2)
    names = [
        s.tensor(key, s.uniform(*shape, low=0.5, high=1.5))
        for key in ("gamma", "beta", "mean", "var")
    ]
    s.node("BatchNormalization", x, *names, name="bn", spatial=0)
    s.output("bn_out")


@pattern(untouched=("quantize", "dequantize"), kept={"bn": "graph-output"}, has_twin=False)
def activation_is_quantised(s: Sketch) -> None:
    """Between convolution and BatchNorm the activation is rounded to 8 bits."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    scale = s.tensor("scale", np.float32(0.02))
    zero = s.tensor("zero", np.uint8(128))
    x = s.node("QuantizeLinear", x, scale, zero, name="quantize")
    s.bn(s.node("DequantizeLinear", x, scale, zero, name="dequantize"), 4)
    s.output("bn_out")


@pattern(kept={"bn": "graph-output"}, untouched=("gelu",), has_twin=False)
def op_of_another_domain(s: Sketch) -> None:
    """An op that the standard does not know lets nothing pass, whatever it may be called."""
    s.domains["com.microsoft"] = 1
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    y = s.node("Gelu", x, name="gelu", domain="com.microsoft")
    s.values.append(helper.make_tensor_value_info(y, s.element_type, [2, 4, 4, 4]))
    s.bn(y, 4)
    s.output("bn_out")


@pattern(kept={"bn": "nonlinear"}, untouched=("gelu",), has_twin=False)
def op_of_another_domain_and_no_shape(s: Sketch) -> None:
    """Nor is known what shape comes out of it."""
    s.domains["com.microsoft"] = 1
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    s.bn(s.node("Gelu", x, name="gelu", domain="com.microsoft"), 4)
    s.output("bn_out", shape=(2, 4, 4, 4))


@pattern(kept={"bn": "fixed-weight"}, has_twin=False)
def weight_is_quantised_per_tensor(s: Sketch) -> None:
    """One scale for all of the weight has no room for one per channel."""
    x = s.input(2, 3, 6, 6)
    integers = s.tensor("q", s.random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    weight = s.node("DequantizeLinear", integers, s.tensor("scale", np.float32(0.01)), name="dq")
    s.bn(s.node("Conv", x, weight, name="conv"), 4)
    s.output("bn_out")


# ---------------------------------------------------------------- affine steps as arithmetic


@pattern("mul", "add")
def conv_mul_add(s: Sketch) -> None:
    """A BatchNorm as Paddle writes it."""
    x = s.node("Mul", s.conv(s.input(2, 3, 6, 6), 3, 4), s.channels("scale", 4), name="mul")
    s.node("Add", s.channels("shift", 4), x, name="add")
    s.output("add_out")


@pattern("sub", "div", "mul", "add")
def conv_sub_div_mul_add(s: Sketch) -> None:
    """Mean and deviation one after the other, the constants in front and behind."""
    x = s.node("Sub", s.conv(s.input(2, 3, 6, 6), 3, 4), s.channels("mean", 4), name="sub")
    x = s.node("Div", x, s.channels("deviation", 4), name="div")
    x = s.node("Mul", s.channels("gamma", 4), x, name="mul")
    s.node("Add", x, s.channels("beta", 4), name="add")
    s.output("add_out")


@pattern("sub", "mul")
def conv_constant_minus_activation(s: Sketch) -> None:
    """c - x turns the sign."""
    x = s.node("Sub", s.channels("c", 4), s.conv(s.input(2, 3, 6, 6), 3, 4), name="sub")
    s.node("Mul", x, s.channels("scale", 4), name="mul")
    s.output("mul_out")


@pattern("sub", "mul", "add")
def conv_bn_with_computed_deviation(s: Sketch) -> None:
    """The factor is computed in the graph: gamma * Reciprocal(Sqrt(var + eps))."""
    x = s.node("Sub", s.conv(s.input(2, 3, 6, 6), 3, 4), s.channels("mean", 4), name="sub")
    var = s.tensor("var", s.uniform(1, 4, 1, 1, low=0.4, high=1.6))
    root = s.node("Sqrt", s.node("Add", var, s.tensor("eps", s.round(1e-3))))
    factor = s.node("Mul", s.channels("gamma", 4), s.node("Reciprocal", root))
    x = s.node("Mul", x, factor, name="mul")
    s.node("Add", x, s.channels("beta", 4), name="add")
    s.output("add_out")


@pattern("bn", "neg")
def conv_neg_bn(s: Sketch) -> None:
    """A minus between the two."""
    s.bn(s.node("Neg", s.conv(s.input(2, 3, 6, 6), 3, 4), name="neg"), 4)
    s.output("bn_out")


@pattern("mul", "add")
def mul_add_conv(s: Sketch) -> None:
    """In front of an unpadded convolution."""
    x = s.node("Mul", s.input(2, 3, 6, 6), s.channels("scale", 3), name="mul")
    s.conv(s.node("Add", x, s.channels("shift", 3), name="add"), 3, 4)
    s.output("conv_out")


@pattern("mul", "add", "bn")
def conv_scalars_bn(s: Sketch) -> None:
    """One number for all channels is one for each of them."""
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    x = s.node("Mul", s.tensor("factor", s.round([-0.7])), x, name="mul")
    s.bn(s.node("Add", x, s.tensor("summand", s.round(0.3)), name="add"), 4)
    s.output("bn_out")


@pattern("div", "mul", untouched=("add",))
def hard_swish_scalars_padded_conv(s: Sketch) -> None:
    """A trained scale and shift behind a hard swish: the scale goes on, the shift may not."""
    _hard_swish_scalars(s, pad=1)


@pattern("div", "mul", "add")
def hard_swish_scalars_conv(s: Sketch) -> None:
    """The same in front of an unpadded convolution."""
    _hard_swish_scalars(s, pad=0)


def _hard_swish_scalars(s: Sketch, *, pad: int) -> None:
    x = s.conv(s.input(2, 3, 6, 6), 3, 4, name="stem")
    bounds = (s.tensor("low", s.round(0.0)), s.tensor("high", s.round(6.0)))
    gate = s.node("Add", x, s.tensor("three", s.round(3.0)), name="three_more")
    x = s.node("Mul", x, s.node("Clip", gate, *bounds, name="clip"), name="gate")
    x = s.node("Div", x, s.tensor("six", s.round(6.0)), name="div")
    x = s.node("Mul", s.tensor("factor", s.round([-0.7])), x, name="mul")
    s.conv(s.node("Add", x, s.tensor("summand", s.round([0.3])), name="add"), 4, 2, pad=pad)
    s.output("conv_out")


@pattern("scale")
def layer_scale(s: Sketch) -> None:
    """A factor per channel on a residual branch."""
    x = s.input(2, 3, 6, 6)
    y = s.node("Mul", s.conv(x, 3, 3, pad=1), s.channels("gamma", 3), name="scale")
    s.node("Add", x, y, name="add")
    s.output("add_out")


# ---------------------------------------------------------------- where constants come from


@pattern("bn")
def weights_in_constant_nodes(s: Sketch) -> None:
    """All parameters as Constant nodes."""
    x = s.input(2, 3, 6, 6)
    names = []
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "gamma": (4,), "beta": (4,), "mean": (4,)}
    for key, shape in shapes.items():
        value = numpy_helper.from_array(s.uniform(*shape, low=-1.0, high=1.0), key)
        names.append(s.node("Constant", name=key, value=value))
    var = numpy_helper.from_array(s.uniform(4, low=0.4, high=1.6), "var")
    names.append(s.node("Constant", name="var", value=var))
    y = s.node("Conv", x, *names[:2], name="conv")
    s.node("BatchNormalization", y, *names[2:], name="bn")
    s.output("bn_out")


@pattern("bn")
def weights_behind_identity(s: Sketch) -> None:
    """Exporters share equal tensors through Identity: a chain of two here."""
    s.tensor("gamma", s.gammas(4))
    x = s.conv(s.input(2, 3, 6, 6), 3, 4)
    gamma = s.node("Identity", s.node("Identity", "gamma"))
    rest = [s.tensor("beta", s.uniform(4)), s.tensor("mean", s.uniform(4))]
    rest.append(s.node("Identity", s.tensor("var", s.uniform(4, low=0.4, high=1.6))))
    s.node("BatchNormalization", x, gamma, *rest, name="bn")
    s.output("bn_out")


@pattern("bn", opset=18)
def bias_computed_from_the_weight(s: Sketch) -> None:
    """PyTorch's unoptimised export makes zeros of the length of the weight for a missing bias."""
    x = s.input(2, 3, 6, 6)
    weight = s.tensor("w", s.uniform(4, 3, 3, 3))
    length = s.node("Shape", weight, start=0, end=1)
    length = s.node("Expand", length, s.node("Constant", value_ints=[1]))
    # Of an activation, CastLike reads the dtype and no more.
    zero = s.node("CastLike", s.tensor("zero", np.float32(0.0)), x)
    s.bn(s.node("Conv", x, weight, s.node("Expand", zero, length), name="conv"), 4)
    s.output("bn_out")


@pattern("bn")
def bias_of_constant_of_shape(s: Sketch) -> None:
    """The same with ConstantOfShape."""
    x = s.input(2, 3, 6, 6)
    one = numpy_helper.from_array(s.round([0.25]), "value")
    bias = s.node("ConstantOfShape", s.integers("length", 4), value=one)
    s.bn(s.node("Conv", x, s.tensor("w", s.uniform(4, 3, 3, 3)), bias, name="conv"), 4)
    s.output("bn_out")


@pattern("bn")
def weight_is_transposed_constant(s: Sketch) -> None:
    """A Linear exported as MatMul by a transposed weight."""
    weight = s.node("Transpose", s.tensor("w", s.uniform(5, 3)), perm=[1, 0])
    x = s.node("MatMul", s.input(2, 3), weight, name="matmul")
    s.bn(s.node("Add", s.tensor("b", s.uniform(5)), x, name="bias"), 5)
    s.output("bn_out")


@pattern("bn", dtype=np.float32)
def weight_is_cast_constant(s: Sketch) -> None:
    """Stored in float16 and cast where it is used."""
    x = s.input(2, 3, 6, 6)
    half = s.tensor("w", s.uniform(4, 3, 3, 3).astype(np.float16))
    weight = s.node("Cast", half, to=s.element_type)
    s.bn(s.node("Conv", x, weight, name="conv"), 4)
    s.output("bn_out")


@pattern("bn1", "bn2")
def convs_share_a_weight(s: Sketch) -> None:
    """One initializer of two convolutions: a constant can be copied."""
    x = s.input(2, 3, 6, 6)
    weight = s.tensor("w", s.uniform(4, 3, 3, 3))
    s.bn(s.node("Conv", x, weight, name="conv1"), 4, name="bn1")
    s.bn(s.node("Conv", s.node("Sigmoid", x), weight, name="conv2"), 4, name="bn2")
    s.output("bn1_out", "bn2_out")


@pattern("bn")
def weight_is_read_elsewhere(s: Sketch) -> None:
    """Another convolution computes its weight from this one's, which must stay as it was for it."""
    x = s.input(2, 3, 6, 6)
    weight = s.tensor("w", s.uniform(4, 3, 3, 3))
    s.bn(s.node("Conv", x, weight, name="conv"), 4)
    mean = s.node("ReduceMean", x, axes=[0, 1, 2, 3], keepdims=1)
    s.node("Conv", x, s.node("Mul", weight, mean), name="dynamic")
    s.output("bn_out", "dynamic_out")


@pattern("bn")
def weight_is_an_output_too(s: Sketch) -> None:
    """The network returns the weight as it was."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.node("Identity", "conv_w", name="same")
    s.output("bn_out", "same_out")


@pattern("bn", ir=3, opset=8)
def initializers_are_inputs(s: Sketch) -> None:
    """Up to IR 3 every initializer is an input too, and nothing but a constant."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    for tensor in s.initializers:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        s.inputs.append(value)
    s.output("bn_out")


@pattern("bn", untouched=("dq",), has_twin=False)
def weight_is_quantised_per_channel(s: Sketch) -> None:
    """The BatchNorm goes into the scales, and the integers stay as they are."""
    x = s.input(2, 3, 6, 6)
    integers = s.tensor("q", s.random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    scale = s.tensor("scale", s.uniform(4, low=0.005, high=0.02))
    zero = s.tensor("zero", np.zeros(4, dtype=np.int8))
    weight = s.node("DequantizeLinear", integers, scale, zero, name="dq", axis=0)
    s.bn(s.node("Conv", x, weight, name="conv"), 4, positive=True)
    s.output("bn_out")


# ---------------------------------------------------------------- shapes, opsets


@pattern("bn", shapes={"batch": 3})
def batch_is_symbolic(s: Sketch) -> None:
    """The usual export."""
    x = s.conv(s.input("batch", 3, 6, 6), 3, 4)
    s.bn(s.node("Relu", x, name="relu"), 4)
    s.output("bn_out")


@pattern("bn", shapes={"batch": 3, "height": 7, "width": 9})
def height_and_width_are_symbolic(s: Sketch) -> None:
    """Channels are all that the laws need."""
    x = s.node("GlobalAveragePool", s.conv(s.input("batch", 3, "height", "width"), 3, 4))
    s.bn(s.node("Relu", x, name="relu"), 4)
    s.output("bn_out")


@pattern("bn", shapes={"batch": 2})
def bn_flatten_symbolic_batch_gemm(s: Sketch) -> None:
    """Reshape with -1 for the batch."""
    x = s.bn(s.input("batch", 3, 2, 2), 3)
    s.gemm(s.node("Reshape", x, s.integers("shape", -1, 12)), 12, 4)
    s.output("gemm_out")


@pattern("bn", opset=7, ir=4)
def opset_7(s: Sketch) -> None:
    """The oldest opset that is read."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.output("bn_out")


@pattern("bn", opset=9)
def opset_9(s: Sketch) -> None:
    """Spatial is no attribute any more."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.output("bn_out")


@pattern("bn", opset=21, ir=10)
def opset_21(s: Sketch) -> None:
    """Among the newest that ONNX Runtime knows."""
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4), 4)
    s.output("bn_out")


@pattern("bn")
def bn_is_the_identity(s: Sketch) -> None:
    """Between input and output: gone, and both keep their names."""
    ones, zeros = np.ones(3), np.zeros(3)
    given = {"gamma": ones, "beta": zeros, "mean": zeros, "var": ones, "epsilon": 0.0}
    s.bn(s.input(2, 3, 4, 4), 3, **given)
    s.output("bn_out")


@pattern("bn", shapes={"batch": 2})
def conv_bn_output_is_read_too(s: Sketch) -> None:
    """The network returns the BatchNorm's output and computes on with it."""
    x = s.bn(s.conv(s.input("batch", 3, 6, 6), 3, 4), 4)
    s.conv(x, 4, 2, pad=1, name="head")
    s.output("bn_out", "head_out")


@pattern("bn")
def names_of_new_constants_are_taken(s: Sketch) -> None:
    """Initializers named like what a fold may want to call its own."""
    for name in ("conv_bias", "conv.bias", "conv_w_folded", "conv_w.folded", "bn_folded"):
        s.node("Identity", s.tensor(name, s.uniform(1)))
    s.bn(s.conv(s.input(2, 3, 6, 6), 3, 4, bias=False), 4)
    s.output("bn_out")
