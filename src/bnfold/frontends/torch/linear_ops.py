"""Linear ops as events state them: a module call, or one of ATen's spellings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx, nn

from bnfold.core import graph as g
from bnfold.core.weights import Layout
from bnfold.core.window import same_padding
from bnfold.frontends.torch.leaf_modules import CONVOLUTIONS, TRANSPOSED
from bnfold.frontends.torch.lifter import channel_axis
from bnfold.frontends.torch.ops import Arguments, UnfitError, node_of, op_name
from bnfold.frontends.torch.recording import Const, Derivation, Event, Value


@dataclass(frozen=True, slots=True, eq=False)
class LinearSpec:
    """A linear op as the event states it."""

    source: Value
    weight: Const
    bias: Const | None
    layout: Layout
    role: g.Linear
    """The op in the core's words, before it is known what may be edited of it."""
    module: nn.Module | None = None
    """The module that takes a bias if it is given one."""
    node: fx.Node | None = None
    """The node that takes a bias if it is given one."""
    is_gated: bool = False
    """Whether what is computed of its output, by the same op, is not linear."""

    @property
    def use(self) -> tuple[Any, ...]:
        """Two uses with equal keys can share one edit."""
        bias = None if self.bias is None else id(self.bias.origin)
        return self.layout, self.role.groups, self.weight.how, bias


def linear_spec(event: Event) -> LinearSpec | None:
    """A linear op, whatever its spelling."""
    spec = _module_spec(event) if isinstance(event.target, nn.Module) else _op_spec(event)
    if spec is not None and (node := node_of(event)) is not None and _names_bias(node):
        return replace(spec, node=node)
    return spec


def is_linear(name: str) -> bool:
    """Whether an op of this name can be a linear op."""
    return name in _READERS


def _names_bias(node: fx.Node) -> bool:
    """Whether the node has an argument for a bias."""
    schema = node.target._schema  # type: ignore[union-attr]
    return any(argument.name == "bias" for argument in schema.arguments)


# -------------------------------------------------------------------- modules


def _module_spec(event: Event) -> LinearSpec | None:
    module = event.target
    source, weight, bias = event.args[0], event.kwargs.get("weight"), event.kwargs.get("bias")
    if not _is_linear_use(source, weight, bias):
        return None
    assert isinstance(weight, Const)
    if isinstance(module, nn.Embedding):
        return _embedding(source, weight)
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
        return None
    if isinstance(module, nn.Linear):
        return _matrix(source, weight, bias, module)
    transposed = isinstance(module, TRANSPOSED)
    padded = module.padding_mode == "zeros" and _pads(
        module.padding, module.kernel_size, module.dilation
    )
    if transposed:
        padded = _misses_taps(
            module.kernel_size, module.stride, module.padding, module.output_padding
        )
    extra = module.output_padding if transposed else 0
    window = (module.stride, module.padding, module.dilation)
    return _convolution(
        source,
        weight,
        bias,
        module.groups,
        transposed=transposed,
        crosses=padded,
        centre=_centre(module.kernel_size, *window, extra),
        module=module,
    )


def _centre(
    kernel: Any, stride: Any, padding: Any, dilation: Any, output_padding: Any
) -> tuple[int, ...] | None:
    """The tap at offset 0; all but the kernel may be one number for all axes."""
    if np.any(np.asarray(output_padding) != 0):
        return None
    rank = len(kernel)
    spread = _spread(dilation, rank)
    if padding == "same":
        before, after = same_padding(tuple(kernel), spread)
    else:
        before = after = (0,) * rank if padding == "valid" else _spread(padding, rank)
    return g.centre_tap(kernel, _spread(stride, rank), spread, before, after)


def _pads(padding: Any, kernel: Any, dilation: Any) -> bool:
    if padding == "valid":
        return False
    if padding == "same":
        return any(d * (k - 1) > 0 for d, k in zip(dilation, kernel, strict=True))
    return bool(np.any(np.asarray(padding) != 0))


def _misses_taps(kernel: Any, stride: Any, padding: Any, output_padding: Any) -> bool:
    """Whether outputs of a transposed convolution see different sets of taps."""
    single = all(k == 1 for k in kernel) and all(s == 1 for s in _listed(stride))
    return not single or _pads(padding, kernel, stride) or bool(np.any(np.asarray(output_padding)))


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _convolution(
    source: Value,
    weight: Const,
    bias: Const | None,
    groups: int,
    *,
    transposed: bool,
    crosses: bool,
    centre: tuple[int, ...] | None,
    module: nn.Module | None,
) -> LinearSpec:
    axis = channel_axis(source, weight.tensor.ndim - 2)
    layout = Layout.IN_OUT if transposed else Layout.OUT_IN
    channels = layout.channels(weight.tensor.shape, groups)
    role = g.Linear(*channels, axis, axis, groups, crosses, centre=centre)
    return LinearSpec(source, weight, bias, layout, role, module)


def _matrix(
    source: Value,
    weight: Const,
    bias: Const | None,
    module: nn.Module | None = None,
    *,
    takes: Layout = Layout.OUT_IN,
) -> LinearSpec | None:
    """x @ W.T + b, or x @ W + b for an op that takes a matrix (in, out).

    The parameter behind W may be its transpose, and it is the parameter's layout that counts. A
    vector W is a linear op whose output has no channels.
    """
    if weight.tensor.ndim != 2:
        return None
    ins, outs = weight.tensor.shape if takes is Layout.IN_OUT else weight.tensor.shape[::-1]
    other = Layout.OUT_IN if takes is Layout.IN_OUT else Layout.IN_OUT
    layout = other if weight.is_transposed else takes
    return _dense(source, weight, bias, layout, (ins, outs), module)


def _dense(
    source: Value,
    weight: Const,
    bias: Const | None,
    layout: Layout,
    channels: tuple[int, int],
    module: nn.Module | None = None,
) -> LinearSpec | None:
    """A matrix product along the last axis."""
    if not _is_bias(bias, channels[1]):
        return None
    last = len(source.shape) - 1
    role = g.Linear(*channels, last, last, centre=())
    return LinearSpec(source, weight, bias, layout, role, module)


def _embedding(source: Value, weight: Const) -> LinearSpec:
    role = g.Linear(0, weight.tensor.shape[1], 0, len(source.shape))
    return LinearSpec(source, weight, None, Layout.ROWS_OUT, role)


# -------------------------------------------------------------------- ops


def _op_spec(event: Event) -> LinearSpec | None:
    reader = _READERS.get(op_name(event.target))
    try:
        return reader(Arguments(event)) if reader else None
    except UnfitError:
        return None


def _is_linear_use(source: Any, weight: Any, bias: Any) -> bool:
    return isinstance(source, Value) and isinstance(weight, Const) and not isinstance(bias, Value)


def _convolution_op(a: Arguments) -> LinearSpec | None:
    return _convolution_of(a, transposed=bool(a.get("transposed")))


def _conv_transpose_op(a: Arguments) -> LinearSpec | None:
    return _convolution_of(a, transposed=True)


def _convolution_of(a: Arguments, *, transposed: bool) -> LinearSpec | None:
    source, weight, bias = a["input"], a["weight"], a.get("bias")
    if not _is_linear_use(source, weight, bias):
        return None
    kernel = tuple(weight.tensor.shape[2:])
    padding = a["padding"] if isinstance(a["padding"], str) else a.wholes("padding")
    if transposed:
        output_padding = a.wholes("output_padding")
        crosses = _misses_taps(kernel, a.wholes("stride"), padding, output_padding)
    else:
        crosses = _pads(padding, kernel, _spread(a["dilation"], len(kernel)))
    window = (a["stride"], padding, a["dilation"])
    return _convolution(
        source,
        weight,
        bias,
        a.whole("groups"),
        transposed=transposed,
        crosses=crosses,
        centre=_centre(kernel, *window, a.get("output_padding") or 0),
        module=None,
    )


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    listed = _listed(value)
    return tuple(listed if len(listed) == rank else listed * rank)


def _linear_op(a: Arguments) -> LinearSpec | None:
    if not _is_linear_use(a["input"], a["weight"], a["bias"]):
        return None
    return _matrix(a["input"], a["weight"], a["bias"])


def _mm_op(a: Arguments) -> LinearSpec | None:
    return _product(a["self"], a.get("mat2", "other"), None)


def _bmm_op(a: Arguments) -> LinearSpec | None:
    """x @ W of many samples, each with the same W."""
    weight = a["mat2"]
    if not isinstance(weight, Const) or (matrix := _the_matrix(weight)) is None:
        return None
    return _product(a["self"], matrix, None)


def _the_matrix(weight: Const) -> Const | None:
    """The matrix that a constant of three axes holds, once or more often, along the first."""
    origin = weight.origin
    if weight.how is Derivation.REPEATED:
        return Const(origin, origin)
    if weight.how is Derivation.REPEATED_TRANSPOSED:
        return Const(origin.t(), origin, Derivation.TRANSPOSED)
    is_alone = weight.how is Derivation.RESHAPED and weight.tensor.shape == (1, *origin.shape)
    return Const(origin, origin) if is_alone else None


def _addmm_op(a: Arguments) -> LinearSpec | None:
    if a["beta"] != 1 or a["alpha"] != 1:
        return None
    return _product(a["mat1"], a["mat2"], a["self"])


def _product(source: Any, weight: Any, bias: Any) -> LinearSpec | None:
    """x @ M + b."""
    if not _is_linear_use(source, weight, bias):
        return None
    return _matrix(source, weight, bias, takes=Layout.IN_OUT)


def _is_bias(bias: Any, outs: int) -> bool:
    """Whether there is one summand per output, or none: others broadcast."""
    return bias is None or (isinstance(bias, Const) and tuple(bias.tensor.shape) == (outs,))


def _embedding_op(a: Arguments) -> LinearSpec | None:
    if not isinstance(a["weight"], Const) or not isinstance(a["indices"], Value):
        return None
    return _embedding(a["indices"], a["weight"])


def _rnn_layer_op(a: Arguments) -> LinearSpec | None:
    """A layer of an LSTM: it begins with a product of its input, (steps, batch, channels)."""
    source, weight = a["input"], a["weight0"]
    bias = a["weight2"] if a["has_biases"] else None
    if not _is_linear_use(source, weight, bias):
        return None
    spec = _matrix(source, weight, bias)
    return None if spec is None else replace(spec, is_gated=True)


_READERS = {
    "mkldnn_rnn_layer": _rnn_layer_op,
    "convolution": _convolution_op,
    "_convolution": _convolution_op,
    "conv1d": _convolution_op,
    "conv2d": _convolution_op,
    "conv3d": _convolution_op,
    "conv_transpose1d": _conv_transpose_op,
    "conv_transpose2d": _conv_transpose_op,
    "conv_transpose3d": _conv_transpose_op,
    "linear": _linear_op,
    "mm": _mm_op,
    "bmm": _bmm_op,
    "matmul": _mm_op,
    "addmm": _addmm_op,
    "embedding": _embedding_op,
}
