"""Turn a plan into edits: new constants, computed when they are asked for, and changed nodes.

    weight, bias          see core/weights.py
    removed affine step   its readers read its input
    kept affine step      gamma' = a' * sqrt(var + eps)      beta' = b' + a' * mean
    clip                  Relu, Clip -> Max, Min, or one behind the other, with a bound per channel

Where new content goes, `new_constants` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from onnx import helper

from bnfold._storage import Weights
from bnfold.core import graph as g
from bnfold.core.fitting import Overflow
from bnfold.core.plan import AffineEdit, ClipEdit, LinearEdit, Plan
from bnfold.core.weights import Layout, fold_bias, fold_weight, weight_factors
from bnfold.frontends.onnx import written
from bnfold.frontends.onnx.edits import Array, Edits, NewTensor
from bnfold.frontends.onnx.lifter import as_float64
from bnfold.frontends.onnx.limits import largest
from bnfold.frontends.onnx.new_constants import NewConstants
from bnfold.frontends.onnx.sites import (
    AffineSite,
    ClipSite,
    ConstantSite,
    Lifted,
    LinearSite,
    QuantizedSite,
    RecurrentSite,
)


def edits_of(lifted: Lifted, plan: Plan, weights: Weights = "stored") -> Edits:
    """The edits of a plan."""
    return _Editor(lifted, plan, weights).run(plan)


class _Editor:
    def __init__(self, lifted: Lifted, plan: Plan, weights: Weights) -> None:
        self.lifted = lifted
        self.network = lifted.network
        self.constants = lifted.constants
        self.new = NewConstants(lifted, plan.removed, weights)
        self.edits = self.new.edits

    def run(self, plan: Plan) -> Edits:
        for number, edit in plan.linear.items():
            site = self.lifted.sites.get(number)
            if site is None:  # a fixed weight: what comes in and goes out is rescaled alike
                continue
            if isinstance(site, ConstantSite):
                self._constant(number, site, edit)
            elif isinstance(site, RecurrentSite):
                self._recurrent(number, site, edit)
            else:
                assert isinstance(site, LinearSite)
                self._linear(number, site, edit)
        for number, change in plan.affine.items():
            affine = self.lifted.sites[number]
            if isinstance(affine, QuantizedSite):
                self._quantized(number, affine, change)
                continue
            assert isinstance(affine, AffineSite)
            self._affine(number, affine, change)
        for number, bounds in plan.clip.items():
            clip = self.lifted.sites[number]
            assert isinstance(clip, ClipSite)
            self._clip(number, clip, bounds)
        for number in plan.removed:
            gone = self.lifted.sites[number]
            assert isinstance(gone, AffineSite)
            self.edits.removed.add(gone.node.index)
            # A constant that got a copy for this step alone is what its readers read now.
            source = self.edits.inputs.pop((gone.node.index, 0), gone.source)
            self.edits.bypassed[gone.output] = source
        if plan.removed:
            self._drop_copies()
        return self.edits

    def _drop_copies(self) -> None:
        """A Concat of one tensor copies it, which takes time: every block of a DenseNet has one."""
        for node in self.network.nodes:
            if node.op != "Concat" or (len(node.inputs), len(node.outputs)) != (1, 1):
                continue
            source, output = node.inputs[0], node.outputs[0]
            if output not in self.constants.nodes and not self.network.is_pinned(output):
                self.edits.removed.add(node.index)
                self.edits.bypassed[output] = source

    # ---------------------------------------------------------------- linear ops

    def _linear(self, number: int, site: LinearSite, edit: LinearEdit) -> None:
        in_rows = site.layout is Layout.ROWS_OUT
        if edit.rescales or in_rows:
            content = partial(self._weight, site, edit)
            factor = None
            is_factor = not in_rows and edit.added is None
            if is_factor and site.weight in self.network.initializers:
                rank = len(self.constants.shape(site.weight) or ())
                factor = weight_factors(edit, site.layout, site.groups, rank)
                factor = _as_stored(site, factor)
            self.new.put(
                number, site.node, site.position, site.weight, None, content, factor=factor
            )
        changes = edit.needs_bias or bool((edit.output_scale != 1.0).any() or edit.zeroed.any())
        if in_rows or site.bias is None or not changes:
            return
        if site.bias.name or edit.needs_bias:
            self._bias(number, site, edit)

    def _weight(self, site: LinearSite, edit: LinearEdit) -> Array:
        weight = self.new.array(site.weight)
        if weight.dtype.kind == "V" or weight.dtype.itemsize < 4:  # float16, bfloat16
            weight = weight.astype(np.float64)
        folded = fold_weight(_matrix_first(site, weight), edit, site.layout, site.groups)
        return _as_stored(site, folded)

    def _bias(self, number: int, site: LinearSite, edit: LinearEdit) -> None:
        bias = site.bias
        assert bias is not None

        def content() -> Array:
            weight = None
            if edit.input_shift.any():  # else it is not looked at: large ones stay where they are
                weight = _matrix_first(site, self.new.array(site.weight))
                if weight.dtype.kind == "V" or site.factor != 1.0:
                    weight = as_float64(weight) * site.factor
            outs = len(edit.output_scale)
            old = None
            if bias.axis is not None:
                moved = fold_bias(weight, None, edit, site.layout, site.groups)
                laid = (outs, *(1,) * (-1 - bias.axis))
                kept = np.where(edit.zeroed, 0.0, edit.output_scale).reshape(laid)
                added = as_float64(self.new.array(bias.name)) * bias.factor
                return np.asarray(added * kept + moved.reshape(laid))
            if bias.name:
                old = np.broadcast_to(
                    as_float64(self.new.array(bias.name)).reshape(-1) * bias.factor, (outs,)
                )
            return fold_bias(weight, old, edit, site.layout, site.groups)

        if bias.node.op == "Sub":  # which goes on taking it off
            taken = partial(_times, bias.factor, content)
            self.new.put(number, *bias.place, taken, like=site.weight)
            return
        if bias.factor != 1.0:
            self.edits.unit_factors.add(bias.node.index)
        if bias.position >= 0:
            copied = bias.factor != 1.0
            self.new.put(number, *bias.place, content, like=site.weight, copied=copied)
            return
        name = self.new.bear(number, f"{site.node.name}_bias", site.weight, bias.shape, content)
        (output,) = site.node.outputs
        inner = self.new.namer.fresh(f"{output}_before_bias")
        op = self.lifted.graph.ops[number]
        assert isinstance(op.role, g.Linear)
        add = written.add(
            inner,
            name,
            output,
            name=self.new.namer.fresh(f"{site.node.name}_add"),
            opset=self.network.opset,
            axis=op.role.out_axis,
            rank=len(self.lifted.graph.shapes[op.outputs[0]]),
        )
        self.edits.behind[site.node.index] = (inner, add)

    # ---------------------------------------------------------------- other linear ops

    def _constant(self, number: int, site: ConstantSite, edit: LinearEdit) -> None:
        """c' = s * (c + t) along the axis of the channels."""
        shape = list(site.shape)
        old = self.constants.shape(site.name) or ()
        laid = tuple(n if axis == site.axis else 1 for axis, n in enumerate(shape))
        while len(shape) > len(old) and shape[0] == 1:  # as short as it was, if it can be
            shape.pop(0)

        def content() -> Array:
            array = as_float64(self.new.array(site.name))
            kept = np.where(edit.zeroed.reshape(laid), 0.0, array)
            moved = kept + edit.output_shift.reshape(laid)
            return np.asarray(moved * edit.output_scale.reshape(laid))

        self.new.put(number, site.node, site.position, site.name, tuple(shape), content)

    def _recurrent(self, number: int, site: RecurrentSite, edit: LinearEdit) -> None:
        """W' = W / s_x, Wb' = Wb - W @ t_x; Rb, behind Wb, stays."""

        def matrix() -> Array:
            array = self.new.array(site.weight)
            return array.reshape(site.directions * site.rows, -1)

        def weight() -> Array:
            return fold_weight(as_float64(matrix()), edit, Layout.OUT_IN, 1)

        def bias() -> Array:
            moved = fold_bias(matrix(), None, edit, Layout.OUT_IN, 1)
            new = np.zeros((site.directions, 2 * site.rows))
            if site.bias:
                new += as_float64(self.new.array(site.bias))
            new[:, : site.rows] += moved.reshape(site.directions, site.rows)
            return new

        if edit.rescales:
            factor = edit.input_inverse.reshape(1, 1, -1)
            self.new.put(number, site.node, 1, site.weight, None, weight, factor=factor)
        if edit.input_shift.any():
            shape = (site.directions, 2 * site.rows)
            self.new.put(number, site.node, 3, site.bias, shape, bias, like=site.weight)

    # ---------------------------------------------------------------- affine steps, activations

    def _affine(self, number: int, site: AffineSite, edit: AffineEdit) -> None:
        if site.mean is None or site.deviation is None:
            self._arithmetic(number, site, edit)
            return
        mean = edit.moved_mean(site.mean)
        contents = list(enumerate(edit.of_batchnorm(mean, site.deviation), 1))
        if not np.array_equal(mean, site.mean):
            contents.append((3, mean))
            is_widened = self.new.weights == "float32" and self.new.is_narrow(site.node, 3)
            if is_widened:  # mean and variance are of one dtype
                contents.append((4, as_float64(self.new.array(site.node.input(4)))))
        for position, content in contents:
            name = site.node.input(position)
            if not name and not content.any():  # a LayerNormalization without a B
                continue
            shape = None if name else content.shape
            made = partial(np.asarray, content)
            self.new.put(number, site.node, position, name, shape, made, like=site.node.input(1))

    def _arithmetic(self, number: int, site: AffineSite, edit: AffineEdit) -> None:
        """The constant of an Add, Sub, Mul or Div; a single number if one still does."""
        node = site.node
        name = node.input(site.position)
        if node.op in ("Mul", "Div"):
            with np.errstate(divide="ignore"):
                content = edit.scale if node.op == "Mul" else 1.0 / edit.scale
        else:
            content = -edit.shift if node.op == "Sub" and site.position == 1 else edit.shift
        old = self.constants.shape(name)
        assert old is not None
        shape = content.shape
        if (content == content.reshape(-1)[0]).all():
            content, shape = content.reshape(-1)[:1], old
            content = np.broadcast_to(content.reshape(()), shape)
        elif math.prod(old) == content.size:
            shape = old
        self.new.put(number, node, site.position, name, shape, partial(np.asarray, content))

    def _quantized(self, number: int, site: QuantizedSite, edit: AffineEdit) -> None:
        """scale'[o] = scale[o] * a'[o], and the bias."""
        scale, shift = edit.scale.reshape(-1), edit.shift.reshape(-1)
        role = self.lifted.graph.ops[number].role
        assert isinstance(role, g.AffineStep)
        node = site.dequantize
        if (scale != 1.0).any():
            content = partial(np.asarray, as_float64(self.new.array(node.input(1))) * scale)
            self.new.put(number, node, 1, node.input(1), None, content)
        if (shift != role.shift.reshape(-1)).any():
            content = partial(np.asarray, shift)
            self.new.put(number, *site.bias.place, content, like=node.outputs[0])

    def _clip(self, number: int, site: ClipSite, edit: ClipEdit) -> None:
        node = site.node
        source, output = site.source, node.outputs[0]
        steps = [
            (op, bound, word)
            for op, bound, word in (
                ("Max", edit.lower, "lower"),
                ("Min", edit.upper, "upper"),
            )
            if not np.isinf(bound).all()
        ]
        made = []
        for place, (op, bound, word) in enumerate(steps):
            is_last = place == len(steps) - 1
            name = self.new.namer.fresh(f"{node.name}_{word}")
            shape = bound.shape
            content = partial(_bound, number, edit, bound, site.data_type)
            self.edits.born[name] = NewTensor(
                number, site.data_type, shape, content, partial(np.asarray, bound)
            )
            into = output if is_last else self.new.namer.fresh(f"{output}_{word}")
            label = node.proto.name
            if label and not is_last:
                label = self.new.namer.fresh(f"{label}_{word}")
            made.append(helper.make_node(op, [source, name], [into], name=label))
            source = into
        if not made:  # no bound is left: the values pass as they are
            made.append(helper.make_node("Identity", [source], [output], name=node.proto.name))
        self.edits.nodes[node.index] = made


def _matrix_first(site: LinearSite, weight: Array) -> Array:
    """A batch of matrices, (*batch, rows, columns), as the formulas have a weight."""
    return np.moveaxis(weight, (-2, -1), (0, 1)) if site.node.op == "MatMul" else weight


def _as_stored(site: LinearSite, weight: Array) -> Array:
    """The other way round."""
    return np.moveaxis(weight, (0, 1), (-2, -1)) if site.node.op == "MatMul" else weight


def _times(factor: float, content: Callable[[], Array]) -> Array:
    return factor * content()


def _bound(number: int, edit: ClipEdit, bound: Array, data_type: int) -> Array:
    """A bound of a clip; one that is infinite is none. Raises Overflow."""
    if not edit.fits(largest(data_type)):
        raise Overflow(number)
    return bound
