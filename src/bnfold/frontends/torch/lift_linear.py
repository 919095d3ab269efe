"""Linear ops: convolutions, transposed convolutions, matrix products, embeddings.

A weight or bias may be edited if it is a parameter (or buffer) of the model itself and every use of
it in the run is as the weight (or bias) of such an op, always in the same way. Several uses are
tied: the solver finds one edit for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.core.window import same_padding
from bnfold.frontends.torch.leaf_modules import CONVOLUTIONS, TRANSPOSED
from bnfold.frontends.torch.lifter import Lifter, LinearSite, channel_axis, is_floating, to_numpy
from bnfold.frontends.torch.limits import narrowing
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

    @property
    def use(self) -> tuple[Any, ...]:
        """Two uses with equal keys can share one edit."""
        bias = None if self.bias is None else id(self.bias.origin)
        return self.layout, self.role.groups, self.weight.how, bias


@dataclass(slots=True)
class Linears:
    """All linear ops of a recording."""

    specs: dict[int, LinearSpec] = field(default_factory=dict)
    """Per event number."""
    by_weight: dict[int, list[Event]] = field(default_factory=dict)
    """Events per id(parameter) used as weight."""
    binary_network: bool = False
    """Whether signs of activations are taken anywhere."""


def survey(lifter: Lifter) -> Linears:
    """Find all linear ops before any is lifted: what may be edited depends on all uses."""
    linears = Linears()
    for event in lifter.recording.events:
        if event.number in lifter.open:
            continue
        spec = _module_spec(event) if isinstance(event.target, nn.Module) else _op_spec(event)
        if spec is not None and (node := node_of(event)) is not None and _names_bias(node):
            spec = replace(spec, node=node)
        if spec is not None and (is_floating(spec.source) or not spec.role.in_channels):
            linears.specs[event.number] = spec
            linears.by_weight.setdefault(id(spec.weight.origin), []).append(event)
        linears.binary_network |= op_name(event.target) in _SIGNS
    return linears


def _names_bias(node: fx.Node) -> bool:
    """Whether the node has an argument for a bias."""
    schema = node.target._schema  # type: ignore[union-attr]
    return any(argument.name == "bias" for argument in schema.arguments)


_SIGNS = {"sign", "sign_", "sgn", "ge", "gt", "le", "lt"}


def emit(lifter: Lifter, event: Event, linears: Linears) -> None:
    """Add the op and say where its parameters are."""
    spec = linears.specs[event.number]
    weight = _weight_freedom(lifter, spec, linears)
    bias_editable, bias = _bias_freedom(lifter, spec, linears)
    uses = linears.by_weight[id(spec.weight.origin)]
    editable = weight is not g.Weight.FIXED
    # Even a fixed weight ties the bias of its uses.
    tie = id(spec.weight.origin) if len(uses) > 1 and (editable or bias_editable) else None
    role = replace(
        spec.role,
        weight=weight,
        bias_editable=bias_editable,
        bias=None if spec.bias is None or bias_editable else _fixed_bias(lifter, spec),
        depthwise_sum=None if editable else _depthwise_sum(lifter, spec),
        tie=tie,
        **_narrowing(event, spec.source),
    )
    inputs = [lifter.tensor(spec.source)]
    number = lifter.emit(event, role, inputs)
    is_whole = spec.weight.is_itself or spec.weight.is_transposed
    content = spec.weight.origin if is_whole else spec.weight.tensor
    lifter.sites[number] = LinearSite(
        content,
        spec.weight.origin if editable else None,
        bias,
        spec.layout,
        spec.role.groups,
        _bias_taker(lifter, spec) if bias_editable else None,
        spec.node if bias_editable else None,
    )


_EDITABLE = {
    Layout.OUT_IN: (Derivation.ITSELF, Derivation.TRANSPOSED, Derivation.SIGNS),
    Layout.IN_OUT: (Derivation.ITSELF, Derivation.SIGNS),
}
"""What may have been made of a weight that is edited."""


def _weight_freedom(lifter: Lifter, spec: LinearSpec, linears: Linears) -> g.Weight:
    weight = spec.weight
    allowed = _EDITABLE.get(spec.layout, (Derivation.ITSELF,))
    if id(weight.origin) not in lifter.owned or weight.how not in allowed:
        return g.Weight.FIXED
    if not weight.origin.dtype.is_floating_point:
        return g.Weight.FIXED
    uses = lifter.recording.parameter_uses[id(weight.origin)]
    known = {id(event) for event in linears.by_weight[id(weight.origin)]}
    events = [use.event for use in uses if use.event is not None]
    if len(events) < len(uses) or any(id(event) not in known for event in events):
        return g.Weight.FIXED
    specs = [linears.specs[event.number] for event in events]
    if any(other.use != spec.use for other in specs):
        return g.Weight.FIXED
    if any(other.bias is not None and other.bias.origin is weight.origin for other in specs):
        return g.Weight.FIXED
    if weight.how is Derivation.SIGNS or (linears.binary_network and _is_binary(weight.origin)):
        return g.Weight.SIGNS
    return g.Weight.FREE


def _bias_taker(lifter: Lifter, spec: LinearSpec) -> nn.Module | None:
    """The module that can be given a bias it does not have."""
    if spec.bias is not None:
        return lifter.recording.lent_biases.get(id(spec.bias.origin))
    return spec.module


def _is_binary(weight: Tensor) -> bool:
    """+c and -c, and nothing else."""
    magnitude = weight.detach().abs()
    first = magnitude.reshape(-1)[:1]
    return bool((magnitude == first).all()) and bool((first > 0).all())


def _bias_freedom(lifter: Lifter, spec: LinearSpec, linears: Linears) -> tuple[bool, Tensor | None]:
    """Whether the bias may be edited or born, and the parameter if there is one."""
    if spec.layout is Layout.ROWS_OUT:  # the rows themselves take the shift
        return _weight_freedom(lifter, spec, linears) is g.Weight.FREE, None
    owner_uses = linears.by_weight[id(spec.weight.origin)]
    if any(linears.specs[event.number].use != spec.use for event in owner_uses):
        return False, None
    if spec.bias is None:
        return spec.node is not None or id(spec.module) in lifter.recording.members, None
    origin = spec.bias.origin
    if id(origin) in lifter.recording.lent_biases:
        return True, None
    if (
        id(origin) not in lifter.owned
        or not spec.bias.is_itself
        or not origin.dtype.is_floating_point
    ):
        return False, None
    same = {id(event) for event in owner_uses}
    for use in lifter.recording.parameter_uses[id(origin)]:
        if use.event is None or id(use.event) not in same:
            return False, None
    return True, origin


def _fixed_bias(lifter: Lifter, spec: LinearSpec) -> FloatArray:
    """Which outputs a bias that stays keeps in scale: those where it is not 0 in every run."""
    assert spec.bias is not None
    known = lifter.is_known(spec.bias)
    return to_numpy(spec.bias.tensor) if known else np.ones(spec.role.out_channels)


def _depthwise_sum(lifter: Lifter, spec: LinearSpec) -> FloatArray | None:
    role = spec.role
    if role.groups == 1 or role.groups != role.in_channels or role.crosses_zeros:
        return None
    if spec.layout is not Layout.OUT_IN or not lifter.is_known(spec.weight):
        return None
    taps = to_numpy(spec.weight.tensor)
    total: FloatArray = taps.reshape(taps.shape[0], -1).sum(axis=1)
    return total


def is_linear(name: str) -> bool:
    """Whether an op of this name can be a linear op."""
    return name in _READERS


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
    source: Value, weight: Const, bias: Const | None, module: nn.Module | None
) -> LinearSpec | None:
    """x @ W.T + b with W (out, in); a vector W is a linear op whose output has no channels."""
    if weight.tensor.ndim != 2:
        return None
    outs, ins = weight.tensor.shape if not weight.is_transposed else weight.tensor.shape[::-1]
    return _dense(source, weight, bias, Layout.OUT_IN, (ins, outs), module)


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
    return _matrix(a["input"], a["weight"], a["bias"], None)


def _mm_op(a: Arguments) -> LinearSpec | None:
    return _product(a["self"], a.get("mat2", "other"), None)


def _addmm_op(a: Arguments) -> LinearSpec | None:
    if a["beta"] != 1 or a["alpha"] != 1:
        return None
    return _product(a["mat1"], a["mat2"], a["self"])


def _product(source: Any, weight: Any, bias: Any) -> LinearSpec | None:
    """x @ M: M is a transposed Linear weight, or a matrix (in, out) of its own."""
    if not _is_linear_use(source, weight, bias) or weight.tensor.ndim != 2:
        return None
    if weight.is_transposed:
        return _matrix(source, weight, bias, None)
    ins, outs = weight.tensor.shape
    return _dense(source, weight, bias, Layout.IN_OUT, (ins, outs))


def _is_bias(bias: Any, outs: int) -> bool:
    """Whether there is one summand per output, or none: others broadcast."""
    return bias is None or (isinstance(bias, Const) and tuple(bias.tensor.shape) == (outs,))


def _embedding_op(a: Arguments) -> LinearSpec | None:
    if not isinstance(a["weight"], Const) or not isinstance(a["indices"], Value):
        return None
    return _embedding(a["indices"], a["weight"])


_READERS = {
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
    "matmul": _mm_op,
    "addmm": _addmm_op,
    "embedding": _embedding_op,
}


def _narrowing(event: Event, source: Value) -> dict[str, Any]:
    """The limits of the dtype it computes in, where autocast has it compute in another one."""
    made = event.outputs[0]
    return {} if made is None else narrowing(source.dtype, made.dtype)
