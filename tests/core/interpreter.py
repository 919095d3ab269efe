"""A NumPy float64 interpreter for graphs of roles: the core proved without any framework.

A `Network` is a `Graph` together with what a graph leaves out: the weights of its linear ops and
the functions behind roles that only promise a law (pooling, LeakyReLU, sigmoid). `apply_plan`
edits a network the way a frontend would and refuses edits that a frontend could not make;
`assert_fold_is_exact` compares the two networks on random inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.modes import ClipMode
from bnfold.core.plan import LinearEdit, Plan, make_plan
from bnfold.core.reasons import Reason
from bnfold.core.weights import Layout, fold_bias, fold_weight

Array = NDArray[np.float64]
Function = Callable[[Sequence[Any]], Sequence[Any]]

TOLERANCE = 1e-11
"""Of an output's largest value: float64 rounding over a dozen ops, and no more."""
SAME = 1e-12
"""Two numbers that must be one, computed over two routes."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The constants of a linear op, and how it applies them."""

    weight: Array
    bias: Array | None
    layout: Layout
    groups: int
    run: Callable[[Array, Array], Array]
    """(input, weight) -> output without bias"""


@dataclass(repr=False)
class Network:
    """A graph that can run. The methods append an op and return its output tensor."""

    graph: g.Graph = field(default_factory=g.Graph)
    weights: dict[int, Weights] = field(default_factory=dict)
    functions: dict[int, Function] = field(default_factory=dict)
    """Per op number, where the role does not say what is computed."""

    def __repr__(self) -> str:
        """One line per op: what a failing test needs to show."""
        lines = [f"inputs {self.graph.inputs}, outputs {[t for t, _, _ in self.graph.outputs]}"]
        for number, op in enumerate(self.graph.ops):
            shapes = [self.shape(tensor) for tensor in op.outputs]
            role = " ".join(f"{op.role}".split())
            lines.append(f"{number} {op.name}: {op.inputs} -> {op.outputs} {shapes} {role}")
        return "\n".join(["Network(", *lines, ")"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis prints this way."""
        printer.text(repr(self))

    def input(self, *shape: int) -> int:
        return self.graph.input(shape, f"input{len(self.graph.inputs)}")

    def output(self, *tensors: int, reason: Reason = Reason.GRAPH_OUTPUT) -> Network:
        for tensor in tensors:
            self.graph.output(tensor, f"output{len(self.graph.outputs)}", reason)
        return self

    def shape(self, tensor: int) -> tuple[int, ...]:
        return self.graph.shapes[tensor]

    def number(self, name: str) -> int:
        """The number of the op of this name."""
        return next(n for n, op in enumerate(self.graph.ops) if op.name == name)

    def add(
        self,
        role: g.Role,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        *,
        name: str | None = None,
        function: Function | None = None,
    ) -> tuple[int, ...]:
        number = len(self.graph.ops)
        made = self.graph.add(
            name or f"{type(role).__name__.lower()}{number}", role, inputs, shapes
        )
        if function is not None:
            self.functions[number] = function
        return made

    # -- linear ----------------------------------------------------------------------------------

    def linear(
        self,
        x: int | None,
        role: g.Linear,
        weights: Weights,
        shape: Sequence[int],
        name: str | None,
    ) -> int:
        self.weights[len(self.graph.ops)] = weights
        return self.add(role, [] if x is None else [x], [shape], name=name)[0]

    def conv(
        self,
        x: int,
        kernel: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        name: str | None = None,
        **role: Any,
    ) -> int:
        """kernel: (out, in/groups, *kernel)"""
        w = np.asarray(kernel, dtype=np.float64)

        def run(value: Array, taps: Array) -> Array:
            return convolve(value, taps, stride, padding, dilation, groups, padding_mode)

        shape = run(np.zeros(self.shape(x)), w).shape
        law = g.Linear(
            in_channels=w.shape[1] * groups,
            out_channels=w.shape[0],
            in_axis=1,
            out_axis=1,
            groups=groups,
            crosses_zeros=padding > 0 and padding_mode == "zeros",
            bias=_vector(bias),
            **{"centre": centre_tap(w, stride, padding, dilation), **role},
        )
        weights = Weights(w, _vector(bias), Layout.OUT_IN, groups, run)
        return self.linear(x, law, weights, shape, name)

    def conv_transpose(
        self,
        x: int,
        kernel: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        name: str | None = None,
        **role: Any,
    ) -> int:
        """kernel: (in, out/groups, *kernel)"""
        w = np.asarray(kernel, dtype=np.float64)

        def run(value: Array, taps: Array) -> Array:
            return convolve_transposed(value, taps, stride, padding, dilation, groups)

        shape = run(np.zeros(self.shape(x)), w).shape
        pointwise = stride == 1 and padding == 0 and all(k == 1 for k in w.shape[2:])
        law = g.Linear(
            in_channels=w.shape[0],
            out_channels=w.shape[1] * groups,
            in_axis=1,
            out_axis=1,
            groups=groups,
            crosses_zeros=not pointwise,
            bias=_vector(bias),
            **{"centre": centre_tap(w, stride, padding, dilation), **role},
        )
        weights = Weights(w, _vector(bias), Layout.IN_OUT, groups, run)
        return self.linear(x, law, weights, shape, name)

    def matrix(
        self,
        x: int,
        kernel: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        layout: Layout = Layout.OUT_IN,
        name: str | None = None,
        **role: Any,
    ) -> int:
        """Over the last axis; kernel: (out, in), or (in, out) for Layout.IN_OUT."""
        w = np.asarray(kernel, dtype=np.float64)

        def run(value: Array, matrix: Array) -> Array:
            return value @ (matrix.T if layout is Layout.OUT_IN else matrix)

        outs, ins = w.shape if layout is Layout.OUT_IN else w.shape[::-1]
        last = len(self.shape(x)) - 1
        law = g.Linear(ins, outs, last, last, bias=_vector(bias), **{"centre": (), **role})
        weights = Weights(w, _vector(bias), layout, 1, run)
        return self.linear(x, law, weights, (*self.shape(x)[:-1], outs), name)

    def embedding(
        self,
        rows: ArrayLike,
        table: ArrayLike,
        *,
        name: str | None = None,
        **role: Any,
    ) -> int:
        """table: (rows, out); the looked-up rows are part of the test, not an input."""
        w, ids = np.asarray(table, dtype=np.float64), np.asarray(rows)
        law = g.Linear(0, w.shape[1], 0, ids.ndim, **role)
        weights = Weights(w, None, Layout.ROWS_OUT, 1, lambda _, matrix: matrix[ids])
        return self.linear(None, law, weights, (*ids.shape, w.shape[1]), name)

    def depthwise_fixed(
        self,
        x: int,
        weight: ArrayLike,
        *,
        stride: int = 1,
        padding: int = 0,
        name: str | None = None,
    ) -> int:
        """A blur with taps that cannot be edited, (channels, 1, *kernel), and no bias."""
        w = np.asarray(weight, dtype=np.float64)
        return self.conv(
            x,
            w,
            stride=stride,
            padding=padding,
            groups=len(w),
            name=name,
            weight=g.Weight.FIXED,
            bias_editable=False,
            depthwise_sum=w.reshape(len(w), -1).sum(axis=1),
        )

    # -- per element -----------------------------------------------------------------------------

    def affine(
        self,
        x: int,
        scale: ArrayLike,
        shift: ArrayLike,
        *,
        axis: int = 1,
        name: str | None = None,
        **role: Any,
    ) -> int:
        """Constants (C,) along `axis`."""
        rank = len(self.shape(x))
        law = g.AffineStep(
            g.channel_array(np.asarray(scale, dtype=np.float64), axis, rank),
            g.channel_array(np.asarray(shift, dtype=np.float64), axis, rank),
            **role,
        )
        return self.add(law, [x], [self.shape(x)], name=name)[0]

    def refused(self, x: int, reason: Reason, *, name: str | None = None) -> int:
        """A step that nothing is known of; here, it passes its input on."""
        role = g.RefusedStep(g.Refusal(reason))
        return self.add(role, [x], [self.shape(x)], name=name, function=list)[0]

    def clip(
        self,
        x: int,
        lower: float = 0.0,
        upper: float = np.inf,
        *,
        name: str | None = None,
        **role: Any,
    ) -> int:
        return self.add(g.Clip(lower, upper, **role), [x], [self.shape(x)], name=name)[0]

    def leaky(
        self, x: int, slope: float = 0.2, *, known: bool = False, name: str | None = None
    ) -> int:
        """`known` tells the core the slope."""

        def function(values: Sequence[Array]) -> list[Array]:
            return [np.where(values[0] > 0, values[0], slope * values[0])]

        negative = np.full((1,) * len(self.shape(x)), slope) if known else None
        role = g.Homogeneous(negative)
        return self.add(role, [x], [self.shape(x)], name=name, function=function)[0]

    def sigmoid(self, x: int, *, name: str | None = None) -> int:
        def function(values: Sequence[Array]) -> list[Array]:
            return [1.0 / (1.0 + np.exp(-np.clip(values[0], -50, 50)))]

        return self.add(g.Opaque(), [x], [self.shape(x)], name=name, function=function)[0]

    def sign(self, x: int, *, odd: bool = True, name: str | None = None) -> int:
        def function(values: Sequence[Array]) -> list[Array]:
            return [np.sign(values[0]) if odd else np.where(values[0] >= 0, 1.0, -1.0)]

        return self.add(g.Sign(odd), [x], [self.shape(x)], name=name, function=function)[0]

    # -- pooling ---------------------------------------------------------------------------------

    def max_pool(self, x: int, size: int = 2, *, padding: int = 0, name: str | None = None) -> int:
        def function(values: Sequence[Array]) -> list[Array]:
            return [pool(values[0], size, padding, -np.inf, np.max)]

        spatial = tuple(range(2, len(self.shape(x))))
        shape = function([np.zeros(self.shape(x))])[0].shape
        return self.add(g.Max(spatial), [x], [shape], name=name, function=function)[0]

    def mean_pool(self, x: int, size: int = 2, *, padding: int = 0, name: str | None = None) -> int:
        def function(values: Sequence[Array]) -> list[Array]:
            return [pool(values[0], size, padding, 0.0, np.mean)]

        spatial = tuple(range(2, len(self.shape(x))))
        shape = function([np.zeros(self.shape(x))])[0].shape
        role = g.Mean(spatial, counts_zeros=padding > 0)
        return self.add(role, [x], [shape], name=name, function=function)[0]

    def reduce(
        self,
        x: int,
        kind: type[g.Max] | type[g.Mean],
        axes: tuple[int, ...],
        *,
        keeps_rank: bool = False,
        name: str | None = None,
    ) -> int:
        def function(values: Sequence[Array]) -> list[Array]:
            over = np.max if kind is g.Max else np.mean
            return [over(values[0], axis=axes, keepdims=keeps_rank)]

        shape = function([np.zeros(self.shape(x))])[0].shape
        role = kind(axes, keeps_rank=keeps_rank)
        return self.add(role, [x], [shape], name=name, function=function)[0]

    # -- several operands ------------------------------------------------------------------------

    def sum(
        self, *xs: int, coefficients: Sequence[float] | None = None, name: str | None = None
    ) -> int:
        factors = tuple(coefficients or (1.0,) * len(xs))
        shape = np.broadcast_shapes(*(self.shape(x) for x in xs))
        return self.add(g.Sum(factors), xs, [shape], name=name)[0]

    def gate(self, x: int, y: int, *, name: str | None = None) -> int:
        shape = np.broadcast_shapes(self.shape(x), self.shape(y))
        return self.add(g.Gate(), [x, y], [shape], name=name)[0]

    def constant(self, value: ArrayLike, shape: Sequence[int], *, name: str | None = None) -> int:
        role = g.Constant(np.asarray(value, dtype=np.float64))
        return self.add(role, [], [shape], name=name)[0]

    # -- views -----------------------------------------------------------------------------------

    def view(self, function: Function, *xs: int, name: str | None = None) -> tuple[int, ...]:
        shapes = [v.shape for v in function([np.zeros(self.shape(x)) for x in xs])]
        return self.add(g.View(function), xs, shapes, name=name)

    def concat(self, *xs: int, axis: int = 1, name: str | None = None) -> int:
        def function(values: Sequence[Array]) -> list[Array]:
            return [np.concatenate(values, axis=axis)]

        shape = function([np.zeros(self.shape(x)) for x in xs])[0].shape
        return self.add(g.View(function, axis), xs, [shape], name=name)[0]

    def split(self, x: int, *at: int, axis: int = 1) -> tuple[int, ...]:
        return self.view(lambda values: np.split(values[0], at, axis=axis), x)

    def shuffle(self, x: int, groups: int) -> int:
        def function(values: Sequence[Any]) -> list[Any]:
            (value,) = values
            shape = value.shape
            parts = value.reshape(shape[0], groups, -1, *shape[2:])
            return [np.swapaxes(parts, 1, 2).reshape(shape)]

        return self.view(function, x)[0]

    def flatten(self, x: int) -> int:
        return self.view(lambda values: [values[0].reshape(len(values[0]), -1)], x)[0]

    def transpose(self, x: int, *order: int) -> int:
        return self.view(lambda values: [np.transpose(values[0], order)], x)[0]

    def pad(
        self,
        x: int,
        before: Sequence[int],
        after: Sequence[int],
        value: float = 0.0,
        *,
        name: str | None = None,
    ) -> int:
        role = g.Pad(tuple(before), tuple(after), value)
        shape = pad_or_crop(np.zeros(self.shape(x)), role).shape
        return self.add(role, [x], [shape], name=name)[0]


def run(network: Network, inputs: Sequence[Array]) -> list[Array]:
    """The values of the network's outputs."""
    values = run_all(network, inputs)
    return [values[tensor] for tensor, _, _ in network.graph.outputs]


def run_all(network: Network, inputs: Sequence[Array]) -> dict[int, Array]:
    """The value of every tensor that some op makes, and of the inputs."""
    graph = network.graph
    values: dict[int, Array] = {
        tensor: value for (tensor, _), value in zip(graph.inputs, inputs, strict=True)
    }
    for number, op in enumerate(graph.ops):
        results = run_op(network, number, op, [values[tensor] for tensor in op.inputs])
        for tensor, result in zip(op.outputs, results, strict=True):
            assert result.shape == graph.shapes[tensor], (op.name, result.shape)
            values[tensor] = result
    return values


def run_op(network: Network, number: int, op: g.Op, inputs: list[Array]) -> Sequence[Array]:
    if number in network.functions:
        return network.functions[number](inputs)
    role = op.role
    shape = network.graph.shapes[op.outputs[0]]
    if isinstance(role, g.Linear):
        weights = network.weights[number]
        result = weights.run(inputs[0] if inputs else np.zeros(0), weights.weight)
        if weights.bias is not None:
            result = result + g.channel_array(weights.bias, role.out_axis, result.ndim)
        return [result]
    if isinstance(role, g.AffineStep):
        return [role.scale * inputs[0] + role.shift]
    if isinstance(role, g.Clip):
        return [np.clip(inputs[0], role.lower, role.upper)]
    if isinstance(role, g.Sum):
        terms = [factor * value for factor, value in zip(role.coefficients, inputs, strict=True)]
        result = terms[0]
        for term in terms[1:]:
            result = result + term
        return [result]
    if isinstance(role, g.Gate):
        return [inputs[0] * inputs[1]]
    if isinstance(role, g.View):
        return role.apply(inputs)  # type: ignore[arg-type]
    if isinstance(role, g.Pad):
        return [pad_or_crop(inputs[0], role)]
    assert isinstance(role, g.Constant), f"{op.name} has no function"
    return [np.broadcast_to(role.value, shape).astype(np.float64)]


def apply_plan(network: Network, plan: Plan) -> Network:
    """The folded network. Fails where the plan asks for what a frontend cannot do."""
    graph = network.graph
    folded = Network(
        g.Graph(list(graph.shapes), list(graph.ops), list(graph.inputs), list(graph.outputs)),
        dict(network.weights),
        dict(network.functions),
    )
    for number, op in enumerate(graph.ops):
        role = op.role
        if number in plan.removed:
            assert isinstance(role, g.AffineStep) and role.is_wanted
            assert graph.shapes[op.inputs[0]] == graph.shapes[op.outputs[0]]
            folded.graph.ops[number] = replace(op, role=g.View(lambda values: values))
        elif number in plan.affine:
            assert isinstance(role, g.AffineStep)
            edit = plan.affine[number]
            assert role.factors is g.Parameter.EDITABLE or close(edit.scale, role.scale), op.name
            assert role.summands is g.Parameter.EDITABLE or close(edit.shift, role.shift), op.name
            edited = replace(role, scale=edit.scale, shift=edit.shift)
            folded.graph.ops[number] = replace(op, role=edited)
        elif number in plan.clip:
            assert isinstance(role, g.Clip) and role.room, op.name
            bounds = plan.clip[number]
            folded.functions[number] = _clipper(bounds.lower, bounds.upper)
        elif number in plan.linear:
            assert isinstance(role, g.Linear)
            edited_weights = _fold_linear(role, folded.weights[number], plan.linear[number])
            folded.weights[number] = edited_weights
            bias = edited_weights.bias
            folded.graph.ops[number] = replace(op, role=replace(role, bias=bias))
    _check_ties(folded, plan)
    return folded


def _clipper(lower: Array, upper: Array) -> Function:
    assert (lower <= upper).all()
    return lambda values: [np.minimum(np.maximum(values[0], lower), upper)]


def _fold_linear(role: g.Linear, old: Weights, edit: LinearEdit) -> Weights:
    weight = fold_weight(old.weight, edit, old.layout, old.groups)
    assert edit.added is None or (role.weight is g.Weight.FREE and role.tie is None)
    if old.layout is Layout.ROWS_OUT:
        assert role.weight is g.Weight.FREE or close(weight, old.weight)
        return replace(old, weight=weight)
    bias = fold_bias(old.weight, old.bias, edit, old.layout, old.groups)
    if role.weight is g.Weight.FIXED:
        assert close(weight, old.weight)
    elif role.weight is g.Weight.SIGNS:
        assert close(np.abs(weight), np.abs(old.weight))
    if not role.bias_editable:
        assert close(bias, 0.0 if old.bias is None else old.bias)
        return replace(old, weight=weight)
    if old.bias is None and not edit.needs_bias:
        assert not bias.any()
        return replace(old, weight=weight)
    return replace(old, weight=weight, bias=bias)


def _check_ties(folded: Network, plan: Plan) -> None:
    """One module, one set of constants: whatever was edited was edited alike for all its calls."""
    seen: dict[Hashable, tuple[ArrayLike, ...]] = {}
    for number, op in enumerate(folded.graph.ops):
        role, constants = op.role, ()
        if isinstance(role, g.Linear) and role.tie is not None:
            weights = folded.weights[number]
            constants = (weights.weight, 0.0 if weights.bias is None else weights.bias)
        elif isinstance(role, g.AffineStep) and role.tie is not None:
            constants = (role.scale, role.shift)
        elif isinstance(role, g.Clip) and role.tie is not None:
            bounds = plan.clip.get(number)
            constants = (bounds.lower, bounds.upper) if bounds else (role.lower, role.upper)
            constants = tuple(np.arctan(bound) for bound in constants)  # there may be none: inf
        if not constants:
            continue
        first = seen.setdefault((type(role), role.tie), constants)
        for one, other in zip(first, constants, strict=True):
            assert close(one, other), f"{op.name} needs another edit than the first use"


def assert_fold_is_exact(
    network: Network,
    *,
    clip: ClipMode = "auto",
    banned: Mapping[int, Obstacle] | None = None,
    tolerance: float = TOLERANCE,
) -> Plan:
    """Fold, compare all outputs on random inputs, and return the plan."""
    plan = make_plan(network.graph, clip=clip, banned=banned)
    steps = {number for number, _, step in network.graph.steps() if step.is_reported}
    assert set(plan.removed) | set(plan.kept) == steps
    assert not set(plan.removed) & set(plan.kept)
    folded = apply_plan(network, plan)
    generator = np.random.default_rng(7)
    shapes = [network.shape(tensor) for tensor, _ in network.graph.inputs]
    for _ in range(2):
        inputs = [2.0 * generator.standard_normal(shape) + 0.3 for shape in shapes]
        for expected, actual in zip(run(network, inputs), run(folded, inputs), strict=True):
            largest = np.abs(expected).max(initial=1e-300)
            error = np.abs(expected - actual).max(initial=0.0)
            assert error <= tolerance * largest, f"off by {error / largest:.1e} of the largest"
    return plan


def removed_names(network: Network, plan: Plan) -> list[str]:
    """The names of the removed steps, in the order in which they run."""
    return [network.graph.ops[number].name for number in sorted(plan.removed)]


def close(one: ArrayLike, other: ArrayLike) -> bool:
    """Whether two arrays hold the same numbers, but for rounding."""
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    size = max(np.abs(first).max(initial=0.0), np.abs(second).max(initial=0.0))
    return bool((np.abs(first - second) <= SAME * size).all())


def convolve(
    x: Array,
    weight: Array,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    padding_mode: str = "zeros",
) -> Array:
    """x: (N, in, *space), weight: (out, in/groups, *kernel), any number of spatial axes."""
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    x = np.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * (x.ndim - 2)], mode[padding_mode])
    kernel = weight.shape[2:]
    space = [
        (n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x.shape[2:], kernel, strict=True)
    ]
    outs = weight.shape[0] // groups
    ins = weight.shape[1]
    y = np.zeros((x.shape[0], weight.shape[0], *space))
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(k * dilation, k * dilation + (n - 1) * stride + 1, stride)
            for k, n in zip(tap, space, strict=True)
        )
        seen = x[(slice(None), slice(None), *window)]
        for group in range(groups):
            out, inp = (
                slice(group * outs, (group + 1) * outs),
                slice(group * ins, (group + 1) * ins),
            )
            y[:, out] += np.einsum(
                "oi,ni...->no...", weight[(out, slice(None), *tap)], seen[:, inp]
            )
    return y


def convolve_transposed(
    x: Array, weight: Array, stride: int, padding: int, dilation: int, groups: int
) -> Array:
    """x: (N, in, *space), weight: (in, out/groups, *kernel)."""
    kernel = weight.shape[2:]
    full = [
        (n - 1) * stride + dilation * (k - 1) + 1 for n, k in zip(x.shape[2:], kernel, strict=True)
    ]
    ins, outs = weight.shape[0] // groups, weight.shape[1]
    y = np.zeros((x.shape[0], outs * groups, *full))
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(k * dilation, k * dilation + (n - 1) * stride + 1, stride)
            for k, n in zip(tap, x.shape[2:], strict=True)
        )
        for group in range(groups):
            out, inp = (
                slice(group * outs, (group + 1) * outs),
                slice(group * ins, (group + 1) * ins),
            )
            y[(slice(None), out, *window)] += np.einsum(
                "io,ni...->no...", weight[(inp, slice(None), *tap)], x[:, inp]
            )
    crop = [slice(padding, n - padding) for n in full]
    return y[(slice(None), slice(None), *crop)]


def pool(x: Array, size: int, padding: int, border: float, over: Callable[..., Array]) -> Array:
    """Windows of `size` with stride 1 over all spatial axes."""
    spatial = range(2, x.ndim)
    x = np.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * len(spatial)], constant_values=border)
    windows = np.lib.stride_tricks.sliding_window_view(
        x, (size,) * len(spatial), axis=tuple(spatial)
    )
    return over(windows, axis=tuple(range(x.ndim, windows.ndim)))


def pad_or_crop(x: Array, role: g.Pad) -> Array:
    """Constant padding in which negative amounts crop."""
    crop = tuple(
        slice(max(0, -b), n - max(0, -a))
        for b, a, n in zip(role.before, role.after, x.shape, strict=True)
    )
    amounts = [(max(0, b), max(0, a)) for b, a in zip(role.before, role.after, strict=True)]
    return np.pad(x[crop], amounts, constant_values=role.value)


def centre_tap(kernel: Array, stride: int, padding: int, dilation: int) -> tuple[int, ...] | None:
    """The same numbers for all axes, in the core's own function."""
    rank = kernel.ndim - 2
    window = ((number,) * rank for number in (stride, dilation, padding, padding))
    return g.centre_tap(kernel.shape[2:], *window)


def _vector(values: ArrayLike | None) -> Array | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
