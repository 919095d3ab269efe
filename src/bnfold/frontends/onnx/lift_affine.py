"""Affine steps: BatchNormalization, and arithmetic with constants.

    BatchNormalization    a = scale / sqrt(var + epsilon)      b = B - a * mean
    Mul, Div by c         a = c, 1/c                           b = 0
    Add, Sub of c         a = 1                                b = c, -c
    c - x, Neg            a = -1                               b = c, 0

Every one is a node, so every one can be removed. What is reported is what has constants per
channel; a step with a single number for all channels (x / 6) goes along where it can.
https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import Affine, FloatArray, deviation_of
from bnfold.core.reasons import Reason
from bnfold.frontends.onnx.lift_constants import table
from bnfold.frontends.onnx.lifter import Lifter, as_float64, constant_at_rank, laid_out
from bnfold.frontends.onnx.limits import growth_limit, range_limit
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import AffineSite
from bnfold.frontends.onnx.written import BROADCASTS

_LARGEST = 1 << 22
"""Elements of the largest constant that is looked at."""


def emit(lifter: Lifter, node: Node) -> bool:
    """Add the node if it is an affine step."""
    if node.op == "BatchNormalization":
        return _batch_norm(lifter, node)
    reader = _ARITHMETIC.get(node.op)
    return reader is not None and reader(lifter, node)


# -------------------------------------------------------------------- BatchNormalization


def _batch_norm(lifter: Lifter, node: Node) -> bool:
    source = node.inputs[0]
    shape = lifter.shape(source)
    if lifter.network.opset < 7 and not node.integer("is_test"):
        return _refused(lifter, node, Reason.BATCH_STATISTICS, "is_test is not set")
    if node.integer("training_mode") or _returns_statistics(lifter, node):
        return _refused(lifter, node, Reason.BATCH_STATISTICS, "in training mode")
    names = [node.input(position) for position in (1, 2, 3, 4)]
    arrays = [lifter.constants.array(name) if name else None for name in names]
    if any(array is None for array in arrays):
        if any(name in lifter.network.sparse for name in names):
            return _refused(lifter, node, Reason.FIXED_WEIGHT, "its parameters are sparse")
        return _refused(lifter, node, *_not_constant(lifter, names))
    open_channels = shape is not None and 1 in lifter.shapes.open_axes(source)
    is_known = shape is not None and len(shape) > 1 and not open_channels
    of_constant = table(lifter, node, 0, 1, shape) if is_known and shape is not None else None
    if shape is None or not is_known or not (of_constant or lifter.is_activation(source)):
        return _refused(
            lifter,
            node,
            Reason.NONLINEAR,
            _unknown_shape(lifter, source),
        )
    gamma, beta, mean, var = (as_float64(array) for array in arrays if array is not None)
    per_value = node.integer("spatial", 1) == 0 and lifter.network.opset < 9
    expected = shape[1:] if per_value else shape[1:2]
    if any(array.size != int(np.prod(expected)) for array in (gamma, beta, mean, var)):
        return _refused(lifter, node, Reason.BAD_STATISTICS, "of another length than the channels")
    epsilon = node.number("epsilon", 1e-5)
    affine = Affine.from_batchnorm(mean, var, epsilon, gamma, beta)
    if not affine.is_finite:
        return _refused(lifter, node, Reason.BAD_STATISTICS, None)
    rank = len(shape)
    laid = (1, *expected) + (1,) * (rank - 1 - len(expected))
    deviation = deviation_of(var, epsilon)
    _, center = affine.as_batchnorm(mean, deviation)
    role = g.AffineStep(
        affine.scale.reshape(laid),
        affine.shift.reshape(laid),
        node.op,
        shape[1],
        factors=g.Parameter.editable_if(not per_value),
        summands=g.Parameter.editable_if(not per_value),
        spread=np.abs(gamma).reshape(laid),
        center=center.reshape(laid),
        range_limit=range_limit(lifter.shapes.dtypes[source]),
        growth_limit=growth_limit(lifter.shapes.dtypes[source]),
    )
    site = AffineSite(node, source, node.outputs[0], mean, deviation)
    return _emit(lifter, node, role, site, tensor=of_constant)


def _unknown_shape(lifter: Lifter, source: str) -> str:
    """What is missing, and what to do if the user can do something."""
    is_inside = bool(lifter.network.taken)  # of a body: nobody names its inputs
    advice = "" if is_inside or not _would_be_told(lifter, source) else _ADVICE
    return f"its input has no known shape{advice}"


_ADVICE = "; give the model's with --input"
_UNTOLD = ("If", "Loop", "Scan")


def _would_be_told(lifter: Lifter, source: str) -> bool:
    """Whether shapes of the inputs may tell that of a value.

    They may where an input has none, and where an operator of ONNX's own takes none of those that
    were tried for the open ones. Not what a body or an operator of another domain makes.
    """
    shapes, network = lifter.shapes, lifter.network
    names = [source] if shapes.of(source) is None else []
    for name in names:  # which grows
        maker = network.makers.get(name)
        if maker is None:
            if name in network.inputs:
                return True
            continue
        unknown = [read for read in maker.inputs if read and shapes.of(read) is None]
        names += [read for read in unknown if read not in names]
        is_own = "::" not in maker.op and maker.op not in _UNTOLD
        if not unknown and is_own and _has_open_inputs(lifter):
            return True
    return False


def _has_open_inputs(lifter: Lifter) -> bool:
    kinds = [kind.tensor_type for kind in lifter.network.inputs.values()]
    return any(
        not kind.HasField("shape") or any(dim.dim_value <= 0 for dim in kind.shape.dim)
        for kind in kinds
    )


def _not_constant(lifter: Lifter, names: list[str]) -> tuple[Reason, str | None]:
    """Why the parameters are not known."""
    unknown = [name for name in names if lifter.constants.array(name) is None]
    if lifter.network.overridable.issuperset(unknown):
        return Reason.OVERRIDABLE, f"drop {', '.join(unknown)} from the inputs of the graph"
    return Reason.NOT_CONSTANT, ", ".join(unknown)


def _returns_statistics(lifter: Lifter, node: Node) -> bool:
    """Before opset 14 further outputs are what says that it runs in training mode."""
    return any(node.outputs[1:])


def _refused(lifter: Lifter, node: Node, reason: Reason, detail: str | None) -> bool:
    shape = lifter.shape(node.inputs[0]) or ()
    computed = [n for n in node.inputs[1:] if n and not lifter.constants.is_constant(n)]
    if computed:  # parameters are values too, and it reads them as they are
        lifter.graph.pin(node.name, [lifter.tensor(name) for name in computed])
    role = g.RefusedStep(g.Refusal(reason, detail), node.op, shape[1] if len(shape) > 1 else 0)
    site = AffineSite(node, node.inputs[0], node.outputs[0])
    return _emit(lifter, node, role, site, outputs=[o for o in node.outputs if o])


def _emit(
    lifter: Lifter,
    node: Node,
    role: g.Step,
    site: AffineSite,
    *,
    outputs: list[str] | None = None,
    is_scalar: bool = False,
    tensor: int | None = None,
) -> bool:
    inputs = [lifter.tensor(site.source) if tensor is None else tensor]
    rank = len(lifter.shape(site.output) or ())
    varying: frozenset[int] = frozenset()
    if isinstance(role, g.AffineStep):
        lengths = role.scale.shape
        own = frozenset(axis for axis, length in enumerate(lengths) if length > 1)
        varying = own | lifter.axes_of(inputs[0], rank)
    number = lifter.emit(node, role, inputs, varying, outputs=outputs or [site.output])
    if number is None:
        return False
    lifter.lifted.sites[number] = site
    if is_scalar:
        lifter.lifted.scalars.add(number)
    return True


# -------------------------------------------------------------------- arithmetic


def _binary(
    affine: Callable[[FloatArray, bool], tuple[FloatArray, FloatArray] | None],
) -> Callable[[Lifter, Node], bool]:
    """An operator of an activation and a constant; `affine` is told which one comes first."""

    def emit(lifter: Lifter, node: Node) -> bool:
        first = lifter.constants.is_constant(node.inputs[0])
        source, name = (node.inputs[1], node.inputs[0]) if first else node.inputs[:2]
        if not lifter.is_activation(source) or not lifter.constants.is_constant(name):
            return False
        shape, output = lifter.shape(source), lifter.shape(node.outputs[0])
        constant = laid_out(lifter, node, name, len(shape or ()))
        if constant is None or int(np.prod(constant)) > _LARGEST or shape != output:
            return False
        if node.op in ("Add", "Sub") and sum(length > 1 for length in constant) > 1:
            return False  # a value like others, which can be stored rescaled
        array = lifter.constants.array(name)
        if array is None or shape is None or len(constant) > len(shape):
            return False
        with np.errstate(all="ignore"):
            step = affine(constant_at_rank(array.reshape(constant), len(shape)), first)
        if step is None:
            return False
        is_old = lifter.network.opset < BROADCASTS
        position = -1 if is_old else 0 if first else 1
        return _emit_arithmetic(lifter, node, source, *step, position=position)

    return emit


def _emit_arithmetic(
    lifter: Lifter,
    node: Node,
    source: str,
    scale: FloatArray,
    shift: FloatArray,
    *,
    position: int,
) -> bool:
    """Constants per channel can be edited; one for all channels is spread out first."""
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return False
    shape = lifter.shape(source) or ()
    channel = lifter.axes_of(lifter.tensor(source))
    own = {axis for axis, length in enumerate(scale.shape) if length > 1}
    is_scalar = not own
    stays = is_scalar and node.index in lifter.lifted.gelu
    editable = position >= 0 and len(own or channel) == 1 and not stays
    if editable and is_scalar:
        spread = [n if axis in channel else 1 for axis, n in enumerate(shape)]
        scale, shift = (np.broadcast_to(part, spread).copy() for part in (scale, shift))
    role = g.AffineStep(
        scale,
        shift,
        node.op,
        scale.size,
        removal=g.Removal.WANTED if len(own) <= 1 and not stays else g.Removal.UNASKED,
        factors=g.Parameter.editable_if(editable and node.op in ("Mul", "Div")),
        summands=g.Parameter.editable_if(editable and node.op in ("Add", "Sub")),
        range_limit=range_limit(lifter.shapes.dtypes[source]),
        growth_limit=growth_limit(lifter.shapes.dtypes[source]),
    )
    site = AffineSite(node, source, node.outputs[0], position=position)
    return _emit(lifter, node, role, site, is_scalar=is_scalar and not stays)


def _add(c: FloatArray, first: bool) -> tuple[FloatArray, FloatArray]:
    return np.ones_like(c), c


def _sub(c: FloatArray, first: bool) -> tuple[FloatArray, FloatArray]:
    return (-np.ones_like(c), c) if first else (np.ones_like(c), -c)


def _mul(c: FloatArray, first: bool) -> tuple[FloatArray, FloatArray]:
    return c, np.zeros_like(c)


def _div(c: FloatArray, first: bool) -> tuple[FloatArray, FloatArray] | None:
    return None if first else (1.0 / c, np.zeros_like(c))


def _neg(lifter: Lifter, node: Node) -> bool:
    source = node.inputs[0]
    if not lifter.is_activation(source):
        return False
    ones = np.ones((1,) * len(lifter.shape(source) or ()))
    return _emit_arithmetic(lifter, node, source, -ones, 0.0 * ones, position=-1)


_ARITHMETIC: dict[str, Callable[[Lifter, Node], Any]] = {
    "Add": _binary(_add),
    "Sub": _binary(_sub),
    "Mul": _binary(_mul),
    "Div": _binary(_div),
    "Neg": _neg,
}
