"""Turn a plan into edits: new tensors, computed when they are asked for, and changed nodes.

    weight, bias          the content of an initializer, in place where nobody else reads it; else
                          an initializer of its own for the op
    removed affine step   its readers read its input
    kept affine step      gamma' = a' * sqrt(var + eps)      beta' = b' + a' * mean
    clip                  Relu, Clip -> Max, Min, or one behind the other, with a bound per channel
    in 16 bits            what is only stored in them (see `narrow`) is rounded to them again, or on
                          request becomes a float32 of its own

Nothing is written to the model here; see `rewrite`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from bnfold._storage import Weights
from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.fitting import Overflow
from bnfold.core.plan import AffineEdit, ClipEdit, LinearEdit, Plan
from bnfold.core.weights import Layout, fold_bias, fold_weight, weight_factors
from bnfold.frontends.names import Namer
from bnfold.frontends.onnx.lifter import as_float64
from bnfold.frontends.onnx.narrow import cast_later, is_narrow
from bnfold.frontends.onnx.nodes import Node, named_values
from bnfold.frontends.onnx.shapes import Shape
from bnfold.frontends.onnx.sites import (
    AffineSite,
    ClipSite,
    ConstantSite,
    Lifted,
    LinearSite,
    QuantizedSite,
    RecurrentSite,
)
from bnfold.frontends.onnx.tensor_data import is_finite
from bnfold.frontends.onnx.tensors import numpy_dtype

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class NewTensor:
    """A tensor that will be computed."""

    op: int
    """Number of the op that asks for it."""
    data_type: int
    shape: Shape
    content: Callable[[], Array]
    """In any dtype."""
    old: Callable[[], Array] | None
    """What was there before: an overflow is no news if it was not finite."""
    source: str = ""
    """The initializer that the content is a multiple of, if it is one."""
    factor: FloatArray | None = None
    """By what, broadcastable to the shape."""

    @property
    def nbytes(self) -> int:
        """How large it will be."""
        return math.prod(self.shape) * numpy_dtype(self.data_type).itemsize

    def compute(self) -> Array:
        """The content, in its dtype. Raises Overflow."""
        dtype = numpy_dtype(self.data_type)
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(self.content()).reshape(self.shape).astype(dtype, copy=False)
        if not is_finite(array) and (self.old is None or is_finite(self.old())):
            raise Overflow(self.op)
        return array


@dataclass(slots=True)
class Edits:
    """Everything that a plan changes."""

    replaced: dict[str, NewTensor] = field(default_factory=dict)
    """New content of initializers, by name."""
    born: dict[str, NewTensor] = field(default_factory=dict)
    """New initializers."""
    inputs: dict[tuple[int, int], str] = field(default_factory=dict)
    """New inputs of nodes, by (index of the node, position)."""
    nodes: dict[int, list[NodeProto]] = field(default_factory=dict)
    """What stands in a node's place."""
    behind: dict[int, tuple[str, NodeProto]] = field(default_factory=dict)
    """New name of a node's output, and the node behind it that makes the old one."""
    unit_factors: set[int] = field(default_factory=set)
    """Indices of Gemms whose beta becomes 1."""
    bypassed: dict[str, str] = field(default_factory=dict)
    """Outputs of removed nodes, and what is read instead."""
    removed: set[int] = field(default_factory=set)
    """Indices of the removed nodes."""
    retyped: set[str] = field(default_factory=set)
    """Values that have another dtype now."""
    rounded: dict[str, int] = field(default_factory=dict)
    """Constants whose new content is rounded to less than what it is computed with in."""

    def compute(self) -> None:
        """Compute every new tensor once, one at a time. Raises Overflow."""
        for new in (*self.replaced.values(), *self.born.values()):
            new.compute()


def edits_of(lifted: Lifted, plan: Plan, weights: Weights = "stored") -> Edits:
    """The edits of a plan."""
    return _Editor(lifted, plan, weights).run(plan)


class _Editor:
    def __init__(self, lifted: Lifted, plan: Plan, weights: Weights) -> None:
        self.lifted = lifted
        self.weights = weights
        self.network = lifted.network
        self.constants = lifted.constants
        self.edits = Edits()
        self.namer = Namer({*named_values(self.network.proto.graph), *self.network.taken})
        self.ties = self._ties()
        self.gone = {self.lifted.sites[number].node.index for number in plan.removed}
        self.widened: dict[str, str] = {}
        """New float32 initializers, by the name of what they were made of."""

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
                shape = self.constants.shape(site.weight)
                factor = weight_factors(edit, site.layout, site.groups, len(shape or ()))
            self._put(number, site.node, site.position, site.weight, None, content, factor=factor)
        changes = edit.needs_bias or bool((edit.output_scale != 1.0).any() or edit.zeroed.any())
        if in_rows or site.bias is None or not changes:
            return
        if site.bias.name or edit.needs_bias:
            self._bias(number, site, edit)

    def _weight(self, site: LinearSite, edit: LinearEdit) -> Array:
        weight = self._array(site.weight)
        if weight.dtype.kind == "V" or weight.dtype.itemsize < 4:  # float16, bfloat16
            weight = weight.astype(np.float64)
        return fold_weight(weight, edit, site.layout, site.groups)

    def _bias(self, number: int, site: LinearSite, edit: LinearEdit) -> None:
        bias = site.bias
        assert bias is not None

        def content() -> Array:
            weight = None
            if edit.input_shift.any():  # else it is not looked at: large ones stay where they are
                weight = self._array(site.weight)
                if weight.dtype.kind == "V" or site.factor != 1.0:
                    weight = as_float64(weight) * site.factor
            outs = len(edit.output_scale)
            old = None
            if bias.axis is not None:
                moved = fold_bias(weight, None, edit, site.layout, site.groups)
                laid = (outs, *(1,) * (-1 - bias.axis))
                kept = np.where(edit.zeroed, 0.0, edit.output_scale).reshape(laid)
                added = as_float64(self._array(bias.name)) * bias.factor
                return np.asarray(added * kept + moved.reshape(laid))
            if bias.name:
                old = np.broadcast_to(
                    as_float64(self._array(bias.name)).reshape(-1) * bias.factor, (outs,)
                )
            return fold_bias(weight, old, edit, site.layout, site.groups)

        if bias.factor != 1.0:
            self.edits.unit_factors.add(bias.node.index)
        if bias.position >= 0:
            copied = bias.factor != 1.0
            self._put(number, *bias.place, content, like=site.weight, copied=copied)
            return
        name = self._bear(number, f"{site.node.name}_bias", site.weight, bias.shape, content)
        (output,) = site.node.outputs
        inner = self.namer.fresh(f"{output}_before_bias")
        add = helper.make_node(
            "Add", [inner, name], [output], name=self.namer.fresh(f"{site.node.name}_add")
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
            array = as_float64(self._array(site.name))
            kept = np.where(edit.zeroed.reshape(laid), 0.0, array)
            moved = kept + edit.output_shift.reshape(laid)
            return np.asarray(moved * edit.output_scale.reshape(laid))

        self._put(number, site.node, site.position, site.name, tuple(shape), content)

    def _recurrent(self, number: int, site: RecurrentSite, edit: LinearEdit) -> None:
        """W' = W / s_x, Wb' = Wb - W @ t_x; Rb, behind Wb, stays."""

        def matrix() -> Array:
            array = self._array(site.weight)
            return array.reshape(site.directions * site.rows, -1)

        def weight() -> Array:
            return fold_weight(as_float64(matrix()), edit, Layout.OUT_IN, 1)

        def bias() -> Array:
            moved = fold_bias(matrix(), None, edit, Layout.OUT_IN, 1)
            new = np.zeros((site.directions, 2 * site.rows))
            if site.bias:
                new += as_float64(self._array(site.bias))
            new[:, : site.rows] += moved.reshape(site.directions, site.rows)
            return new

        if edit.rescales:
            factor = edit.input_inverse.reshape(1, 1, -1)
            self._put(number, site.node, 1, site.weight, None, weight, factor=factor)
        if edit.input_shift.any():
            shape = (site.directions, 2 * site.rows)
            self._put(number, site.node, 3, site.bias, shape, bias, like=site.weight)

    # ---------------------------------------------------------------- tensors

    def _array(self, name: str) -> Array:
        array = self.constants.array(name)
        assert array is not None
        return array

    def _put(
        self,
        number: int,
        node: Node,
        position: int,
        name: str,
        shape: Shape | None,
        content: Callable[[], Array],
        *,
        like: str = "",
        copied: bool = False,
        factor: FloatArray | None = None,
    ) -> None:
        """Give an input of a node new content: in place, or under a name of its own."""
        old_shape = self.constants.shape(name) if name else None
        shape = old_shape if shape is None else shape
        assert shape is not None
        if self._is_narrow(node, position):
            if self.weights == "float32":
                self._widen(number, node, position, name, shape, content)
                return
            self.edits.rounded[name] = self._data_type(name)
        is_same = name in self.network.initializers and shape == old_shape and not copied
        if is_same and self._may_edit(number, name):
            if name not in self.edits.replaced:
                new = self._new(number, name, shape, content, name)
                self.edits.replaced[name] = replace(new, source=name, factor=factor)
            return
        wanted = f"{name}_folded" if name else f"{node.name}_bias"
        born = self._bear(number, wanted, name or like, shape, content, old=name)
        self.edits.born[born] = replace(self.edits.born[born], source=name, factor=factor)
        self.edits.inputs[node.index, position] = born

    def _is_narrow(self, node: Node, position: int) -> bool:
        dtypes = self.constants.shapes.dtypes
        return is_narrow(self.network, dtypes, node, position, self.gone)

    def _widen(
        self,
        number: int,
        node: Node,
        position: int,
        name: str,
        shape: Shape,
        content: Callable[[], Array],
    ) -> None:
        """Let a node read float32; ops that want the same edit share it."""
        born = self.widened.get(name) if self._may_edit(number, name) else None
        if born is None:
            born = self._bear(number, f"{name}_folded", name, shape, content, old=name)
            wide = replace(self.edits.born[born], data_type=TensorProto.FLOAT)
            self.edits.born[born] = wide
            self.widened[name] = born
        self.edits.inputs[node.index, position] = born
        if node.op == "Gather":
            dtypes = self.constants.shapes.dtypes
            later = cast_later(self.network, dtypes, node, self.gone)
            assert later is not None
            self.edits.retyped |= {*later.values}
            for cast in later.casts:
                self.edits.removed.add(cast.index)
                self.edits.bypassed[cast.outputs[0]] = cast.inputs[0]

    def _may_edit(self, number: int, name: str) -> bool:
        """Whether everybody who reads the initializer wants this edit."""
        if self.network.is_pinned(name):
            return False
        readers = self.network.value_readers(name)
        if len(readers) == 1:
            return True
        tie = self._tie(number)
        return tie is not None and all(
            self.ties.get((node.index, position)) == tie for node, position in readers
        )

    def _tie(self, number: int) -> object:
        role = self.lifted.graph.ops[number].role
        return getattr(role, "tie", None)

    def _ties(self) -> dict[tuple[int, int], object]:
        """The tie of the op that reads a weight or bias, by (index of the node, position)."""
        ties: dict[tuple[int, int], object] = {}
        for number, site in self.lifted.sites.items():
            if isinstance(site, LinearSite) and (tie := self._tie(number)) is not None:
                ties[site.node.index, site.position] = tie
                if site.bias is not None and site.bias.factor == 1.0:
                    ties[site.bias.node.index, site.bias.position] = tie
        return ties

    def _bear(
        self,
        number: int,
        wanted: str,
        like: str,
        shape: Shape,
        content: Callable[[], Array],
        *,
        old: str = "",
    ) -> str:
        name = self.namer.fresh(wanted)
        self.edits.born[name] = self._new(number, like, shape, content, old)
        return name

    def _new(
        self, number: int, like: str, shape: Shape, content: Callable[[], Array], old: str
    ) -> NewTensor:
        before = partial(self._array, old) if old else None
        return NewTensor(number, self._data_type(like), shape, content, before)

    def _data_type(self, name: str) -> int:
        tensor = self.network.initializers.get(name)
        if tensor is not None:
            return tensor.data_type
        known = self.constants.shapes.dtypes.get(name)
        if known:
            return known
        return int(helper.np_dtype_to_tensor_dtype(self._array(name).dtype))

    # ---------------------------------------------------------------- affine steps, activations

    def _affine(self, number: int, site: AffineSite, edit: AffineEdit) -> None:
        if site.mean is None or site.deviation is None:
            self._arithmetic(number, site, edit)
            return
        mean = edit.moved_mean(site.mean)
        contents = list(enumerate(edit.of_batchnorm(mean, site.deviation), 1))
        if not np.array_equal(mean, site.mean):
            contents.append((3, mean))
            if self.weights == "float32" and self._is_narrow(site.node, 3):  # both of one dtype
                contents.append((4, as_float64(self._array(site.node.input(4)))))
        for position, content in contents:
            name = site.node.input(position)
            self._put(number, site.node, position, name, None, partial(np.asarray, content))

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
        self._put(number, node, site.position, name, shape, partial(np.asarray, content))

    def _quantized(self, number: int, site: QuantizedSite, edit: AffineEdit) -> None:
        """scale'[o] = scale[o] * a'[o], and the bias."""
        scale, shift = edit.scale.reshape(-1), edit.shift.reshape(-1)
        role = self.lifted.graph.ops[number].role
        assert isinstance(role, g.AffineStep)
        node = site.dequantize
        if (scale != 1.0).any():
            content = partial(np.asarray, as_float64(self._array(node.input(1))) * scale)
            self._put(number, node, 1, node.input(1), None, content)
        if (shift != role.shift.reshape(-1)).any():
            content = partial(np.asarray, shift)
            self._put(number, *site.bias.place, content, like=node.outputs[0])

    def _clip(self, number: int, site: ClipSite, edit: ClipEdit) -> None:
        node = site.node
        source, output = node.inputs[0], node.outputs[0]
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
            name = self.namer.fresh(f"{node.name}_{word}")
            shape = bound.shape
            content = partial(np.asarray, bound)
            self.edits.born[name] = NewTensor(number, site.data_type, shape, content, content)
            into = output if is_last else self.namer.fresh(f"{output}_{word}")
            label = node.proto.name if is_last else f"{node.proto.name}_{word}"
            label = label if is_last or not node.proto.name else self.namer.fresh(label)
            made.append(helper.make_node(op, [source, name], [into], name=label))
            source = into
        if not made:  # no bound is left: the values pass as they are
            made.append(helper.make_node("Identity", [source], [output], name=node.proto.name))
        self.edits.nodes[node.index] = made
