"""Merge linear nodes before the fold: the model that is folded has one where several stood.

    carrier            a node of its own kind, with the weight, bias and pads of all
    a sum, a Concat    goes, or keeps its other operands; one that is left alone takes its place
    an activation      of the carrier stays behind it, those of its siblings go
    a Transpose        stands in front of the carrier, and behind it, where it reads and makes
                       tensors with their channels elsewhere; others between what is merged go
    what stood in      goes, with the initializers that nobody reads any more
    between

What comes out has the name of the sum where it is all of that, and else a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from bnfold.core import graph as g
from bnfold.core.affine import Affine
from bnfold.core.expression import Freedom
from bnfold.core.kernel import Kernel
from bnfold.core.merge import choices
from bnfold.core.merge_again import can_merge_again
from bnfold.core.merge_within import merges_within
from bnfold.core.merged import Merge
from bnfold.core.plan import Plan
from bnfold.core.unmoved import unmoved
from bnfold.core.weights import exchanged
from bnfold.core.window import Window
from bnfold.frontends.merge_report import Merging
from bnfold.frontends.names import Namer
from bnfold.frontends.onnx import written
from bnfold.frontends.onnx.edits import Edits, NewTensor
from bnfold.frontends.onnx.merge_borders import borders
from bnfold.frontends.onnx.merge_parts import parts_of
from bnfold.frontends.onnx.nodes import Node, named_values
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.rewrite import rewrite
from bnfold.frontends.onnx.sites import AffineSite, Lifted, LinearSite, Site
from bnfold.frontends.onnx.tensor_data import is_finite
from bnfold.frontends.onnx.tensors import numpy_dtype

_KEPT = 1 << 25
"""Bytes of kernels that are kept until they are written, in all."""


def merges_of(model: OnnxModel, lifted: Lifted) -> Iterator[tuple[OnnxModel, Merging]]:
    """The model with what can be one merged, then with less of that: itself at last."""
    merger = _Merger(lifted)
    parts, freedom = merger.parts, merger.freedom
    candidates = merges_within(merger.graph, parts, freedom, merger.can_write)
    for chosen in choices(merger.graph, parts, candidates):
        writer = _Merger(lifted)
        merges = writer.run(chosen)
        merging = Merging(merger.graph, parts, freedom, merges, lifted.scalars)
        yield rewrite(model, lifted, writer.edits) if merges else model, merging


def are_left(lifted: Lifted, plan: Plan, *, is_merged: bool) -> bool:
    """Whether there are more to find in what a fold makes."""
    edited = (lifted.sites.get(number) for number in plan.linear)
    weights = {site.weight for site in edited if isinstance(site, LinearSite)}
    if plan.removed and not all(_is_own(lifted, name) for name in weights):
        return True  # an op has a weight of its own now
    merger = _Merger(lifted)
    graph, parts = merger.lying
    return can_merge_again(
        graph, plan, parts, merger.freedom, is_merged=is_merged, moves=merger.moves
    )


def _is_own(lifted: Lifted, weight: str) -> bool:
    """Whether one op reads a constant, and nothing computes it."""
    maker = lifted.constants.nodes.get(weight)
    is_computed = maker is not None and maker.op != "Constant"
    return not is_computed and len(lifted.network.value_readers(weight)) == 1


class _Merger:
    def __init__(self, lifted: Lifted) -> None:
        self.lifted = lifted
        graph = lifted.graph
        self.graph = g.Graph(graph.shapes, [*graph.ops], graph.inputs, graph.outputs)
        self.parts = parts_of(lifted)
        self.network = lifted.network
        self.names = {number: name for name, number in lifted.tensors.items()}
        """Of the values, per graph tensor."""
        self.edits = Edits()
        self.room = _KEPT
        self.namer = Namer({*named_values(self.network.proto.graph), *self.network.taken})
        self.borders: dict[int, list[Node]] = {}
        """The nodes that write one, by the number of their op."""
        self._take_borders()
        self.ops: dict[int, int] = {}
        """How many ops each node is lifted into, by the node's index."""
        for op in self.graph.ops:
            for node in self._nodes_of(op):
                self.ops[node.index] = self.ops.get(node.index, 0) + 1
        self.moves = self._moves()
        """What Transposes do, by the number of the op."""
        self.lying = self.graph, self.parts
        """The network with its Transposes, where all else takes them for copies."""
        self.unmoved = unmoved(self.graph, self.parts, self.moves)
        self.graph, self.parts = self.unmoved.graph, self.unmoved.parts
        plain = [(own, self.names.get(t)) for (t, _), own in self.unmoved.plain.items()]
        self.names |= {own: name for own, name in plain if name is not None}

    def _moves(self) -> dict[int, tuple[int, ...]]:
        """What Transposes do, but those within a border."""
        within = {node.index for nodes in self.borders.values() for node in nodes}
        moves = {}
        for number, op in enumerate(self.graph.ops):
            nodes = self._nodes_of(op) if op.kind == "Transpose" and op.inputs else []
            if isinstance(op.role, g.View) and nodes and nodes[0].index not in within:
                turned = tuple(reversed(range(len(self.graph.shapes[op.inputs[0]]))))
                moves[number] = nodes[0].integers("perm") or turned
        return moves

    def _take_borders(self) -> None:
        """Let what writes a border be one op."""
        ops, tensors = self.graph.ops, self.lifted.tensors
        makers = {output: number for number, op in enumerate(ops) for output in op.outputs}
        for found, part in borders(self.lifted):
            source, made = tensors[found.pad.inputs[0]], tensors[found.made]
            first, last = makers[tensors[found.pad.outputs[0]]], makers[made]
            ops[last] = replace(ops[first], role=g.Opaque(), inputs=(source,), outputs=(made,))
            ops[first] = replace(ops[first], role=g.Opaque(), inputs=())
            self.parts.pop(first, None)
            self.parts[last], self.borders[last] = part, list(found.nodes)

    @property
    def freedom(self) -> Freedom:
        """What can be taken out, and given other constants."""
        return Freedom(self.can_go, carries_affine=self.is_batch_norm, ends=self._looked_at())

    def _looked_at(self) -> set[int]:
        """Tensors of which somebody wants the shape or dtype, and so has to find them."""
        readers = self.network.readers
        return {
            tensor
            for name, tensor in self.lifted.tensors.items()
            if len(readers.get(name, ())) > len(self.network.value_readers(name))
        }

    def can_go(self, number: int) -> bool:
        """Whether an op is one whole node, or a MatMul with its Add."""
        op = self.graph.ops[number]
        nodes = self._nodes(number)
        if number in self.borders:
            return True
        return (
            bool(nodes)
            and not any(node.index in self.lifted.gelu for node in nodes)
            and all(self.ops.get(node.index, 0) == 1 or node.op == "MatMul" for node in nodes)
            and all(tensor in self.names for tensor in op.outputs)
            and not any(self._is_read(name) for node in nodes for name in node.outputs[1:])
        )

    def _is_read(self, name: str) -> bool:
        """Whether somebody reads what a node makes beside its result, as the mask of a Dropout."""
        return bool(name) and (name in self.network.readers or self.network.is_pinned(name))

    def is_batch_norm(self, number: int) -> bool:
        """Whether an affine step has factors and summands of its own."""
        site = self.lifted.sites.get(number)
        has_mean = isinstance(site, AffineSite) and site.mean is not None
        return has_mean and self.lifted.graph.ops[number].kind == "BatchNormalization"

    def can_write(self, merge: Merge) -> bool:
        """Whether the carrier's node can be written with the new window, and the sums without."""
        if merge.source not in self.names:  # in the middle of what one node does
            return False
        if merge.tail and self._moved_behind(merge) is not None:
            return False
        node = self._nodes(merge.carrier)[0]
        window = merge.window
        if window is not None and window.is_transposed and node.op == "ConvTranspose":
            steps = zip(window.after, window.stride, window.dilation, strict=True)
            if any(-after >= max(stride, dilation) for after, stride, dilation in steps):
                return False
        elif window is not None and node.op == "ConvTranspose":
            return False
        if node.op == "Gemm" and len(self.graph.shapes[merge.source]) != 2:
            return False
        involved = {
            number for number in merge.gone if isinstance(self.graph.ops[number].role, g.Sum)
        }
        if not all(self._nodes(number) for number in {*involved, *merge.sums, *merge.tail}):
            return False
        # A mean of fewer would weigh each of them more.
        return not any(
            len(kept) > 1 and self._nodes(number)[0].op in ("Mean", "ReduceMean")
            for number, kept in merge.sums.items()
        )

    def _nodes_of(self, op: g.Op) -> list[Node]:
        made = (self.network.makers.get(self.names.get(tensor, "")) for tensor in op.outputs)
        return list({node.index: node for node in made if node is not None}.values())

    def _nodes(self, number: int) -> list[Node]:
        """The nodes behind an op; the linear one comes first."""
        if number in self.borders:
            return self.borders[number]
        site = self.lifted.sites.get(number)
        nodes = self._nodes_of(self.graph.ops[number])
        if isinstance(site, LinearSite):
            nodes = [site.node, *(node for node in nodes if node is not site.node)]
        if (stack := self.lifted.stacks.get(number)) is not None:
            nodes = [*nodes, stack.concat, *stack.parts]
        return nodes

    def _place(self, number: int, position: int) -> tuple[Node, int]:
        """The node that reads an operand of a sum, and as which input."""
        stack = self.lifted.stacks.get(number)
        return (self._nodes(number)[0], position) if stack is None else (stack.parts[position], 0)

    # ---------------------------------------------------------------- writing

    def run(self, merges: Sequence[Merge]) -> list[Merge]:
        """Write the edits of all; those whose numbers do not fit their dtype are left out."""
        tried = [(merge, self._numbers(merge)) for merge in merges]
        # Merges in one sum go together.
        failed = {tuple(merge.sums) for merge, numbers in tried if numbers is None}
        ready = [
            (merge, numbers)
            for merge, numbers in tried
            if numbers is not None and (not merge.sums or tuple(merge.sums) not in failed)
        ]
        entered: dict[tuple[int, int], str] = {}
        for merge, numbers in ready:
            self._write(merge, numbers, entered)
        for merge, _ in ready:
            for number, kept in merge.sums.items():
                self._shorten(number, kept, entered)
        for (number, position), name in entered.items():
            node, at = self._place(number, position)
            if node.index not in self.edits.nodes and node.index not in self.edits.removed:
                self.edits.inputs[node.index, at] = name
        return [merge for merge, _ in ready]

    def _numbers(self, merge: Merge) -> _Numbers | None:
        """The kernel of a merge; None if it does not fit its dtype."""
        dtypes = self.lifted.constants.shapes.dtypes
        data_type = dtypes[self._nodes(merge.carrier)[0].outputs[0]]
        kernel, dtype = merge.kernel(), numpy_dtype(data_type)
        site = self.lifted.sites[merge.carrier]
        stored: tuple[Array, ...] = kernel.numbers
        if isinstance(site, AffineSite):  # with its own mean and deviation
            stored = (*stored, *_constants(kernel, site))
        with np.errstate(over="ignore", invalid="ignore"):
            if not all(is_finite(numbers.astype(dtype)) for numbers in stored):
                return None
        if not kernel.keeps_digits_in(dtype.name):
            return None
        is_kept = kernel.weight.nbytes <= self.room
        self.room -= kernel.weight.nbytes if is_kept else 0
        shapes = (kernel.weight.shape, kernel.bias.shape)
        blank = replace(kernel, weight=np.broadcast_to(0.0, shapes[0]), bias=np.zeros(shapes[1]))
        has_bias = bool(kernel.bias.any())
        return _Numbers(data_type, merge.kernel, kernel if is_kept else None, blank, has_bias)

    def _write(self, merge: Merge, numbers: _Numbers, entered: dict[tuple[int, int], str]) -> None:
        node, *others = self._nodes(merge.carrier)
        output = self.names[merge.output]
        if merge.enters is not None:
            output = self.namer.fresh(f"{node.outputs[0]}_merged")
            entered[merge.enters] = output
        output = self._pass_on(merge, output)
        gone = {part.index for number in merge.gone for part in self._nodes(number)}
        self.edits.removed |= (gone | {other.index for other in others}) - {node.index}
        site, source = self.lifted.sites[merge.carrier], self.names[merge.source]
        rank, opset = len(self.graph.shapes[merge.source]), self.network.opset
        source, front = self._transposed(
            node, source, "in", self.unmoved.moved(merge.source, self._read(merge))
        )
        makes, behind = output, list[NodeProto]()
        if (back := self._moved_behind(merge)) is not None:
            makes = self.namer.fresh(f"{output}_transposed")
            _, behind = self._transposed(node, makes, "out", back, output)
        place = _Place(
            node, source, makes, site, merge.window, merge.groups, self.namer, rank, opset
        )
        make = _MAKERS.get(node.op, _convolution)
        made = make(place, numbers.has_bias, partial(self._bear, merge.carrier, numbers, node))
        self.edits.nodes[node.index] = [*front, *made, *behind]

    def _read(self, merge: Merge) -> int:
        """A tensor that lies as the carrier wants it."""
        return self.graph.ops[merge.carrier].inputs[0]

    def _moved_behind(self, merge: Merge) -> tuple[int, ...] | None:
        """What transposes the carrier's result, so that it lies as what it stands for."""
        return self.unmoved.moved(self.graph.ops[merge.carrier].outputs[0], merge.output)

    def _transposed(
        self, node: Node, source: str, what: str, perm: tuple[int, ...] | None, output: str = ""
    ) -> tuple[str, list[NodeProto]]:
        """A value that lies otherwise, and the node that makes it if one has to."""
        if perm is None:
            return source, []
        name = node.name and self.namer.fresh(f"{node.name}_transpose_{what}")
        output = output or self.namer.fresh(f"{source}_transposed")
        return output, [helper.make_node("Transpose", [source], [output], name=name, perm=perm)]

    def _pass_on(self, merge: Merge, output: str) -> str:
        """Let the activations behind a carrier make a value; returns what the carrier makes."""
        for number in reversed(merge.tail):
            (node,) = self._nodes(number)
            source = self.namer.fresh(f"{self.names[self.graph.ops[number].inputs[0]]}_merged")
            proto = NodeProto()
            proto.CopyFrom(node.proto)
            position = node.inputs.index(self.names[self.graph.ops[number].inputs[0]])
            proto.input[position], proto.output[0] = source, output
            self.edits.nodes[node.index] = [proto]
            output = source
        return output

    def _bear(self, number: int, numbers: _Numbers, node: Node, what: str, pick: Pick) -> str:
        name = self.namer.fresh(f"{node.name}_{what}")
        shape, content = pick(numbers.blank).shape, partial(numbers.picked, pick)
        self.edits.born[name] = NewTensor(number, numbers.data_type, shape, content, None)
        return name

    def _shorten(
        self, number: int, kept: tuple[int, ...], entered: dict[tuple[int, int], str]
    ) -> None:
        """A sum, or a Concat, keeps some of its operands."""
        node, *others = self._nodes(number)
        places = {position: self._place(number, position) for position in kept}
        inputs = [entered.get((number, p), at.inputs[i]) for p, (at, i) in places.items()]
        if len(inputs) == 1:
            self.edits.removed |= {node.index, *(other.index for other in others)}
            self.edits.bypassed[node.outputs[0]] = inputs[0]
            return
        if stack := self.lifted.stacks.get(number):
            node = stack.concat
            inputs = [at.outputs[0] for at, _ in places.values()]
            self.edits.removed |= {
                part.index for part in stack.parts if part.outputs[0] not in inputs
            }
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        del proto.input[:]
        proto.input.extend(inputs)
        self.edits.nodes[node.index] = [proto]


Array = NDArray[np.float64]
Pick = Callable[[Kernel], Array]
"""What a tensor is of a kernel."""
Bear = Callable[[str, Pick], str]
"""Makes an initializer, and names it."""


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A kernel in the dtype of a file; large ones are computed again when they are asked for."""

    data_type: int
    make: Callable[[], Kernel]
    kept: Kernel | None
    blank: Kernel
    """Of the same shape."""
    has_bias: bool

    def picked(self, pick: Pick) -> NDArray[Any]:
        """One of its tensors."""
        return pick(self.kept or self.make()).astype(numpy_dtype(self.data_type))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a merged node stands."""

    node: Node
    """The carrier."""
    source: str
    output: str
    site: Site
    window: Window | None
    groups: int
    namer: Namer
    rank: int
    """Of what it reads."""
    opset: int


def _convolution(place: _Place, has_bias: bool, bear: Bear) -> list[NodeProto]:
    window = place.window
    assert window is not None
    attributes: dict[str, Any] = {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        "dilations": window.dilation,
        "group": place.groups,
    }
    after = window.after
    if place.node.op == "ConvTranspose":
        attributes["output_padding"] = tuple(max(0, -pad) for pad in after)
        after = tuple(max(0, pad) for pad in after)
        weight = bear("weight", lambda kernel: exchanged(kernel.weight, kernel.groups))
    else:
        weight = bear("weight", lambda kernel: kernel.weight)
    if window.rule:
        attributes["auto_pad"] = window.rule
    else:
        attributes["pads"] = (*window.before, *after)
    inputs = [place.source, weight]
    if has_bias:
        inputs.append(bear("bias", lambda kernel: kernel.bias))
    name = place.node.name
    return [helper.make_node(place.node.op, inputs, [place.output], name=name, **attributes)]


def _dense(kernel: Kernel) -> Array:
    """(out, in)"""
    return kernel.in_groups(1).reshape(len(kernel.bias), -1)


def _gemm(place: _Place, has_bias: bool, bear: Bear) -> list[NodeProto]:
    inputs = [place.source, bear("weight", _dense)]
    if has_bias or written.gemm_needs_bias(place.opset):
        inputs.append(bear("bias", lambda kernel: kernel.bias))
    name, opset = place.node.name, place.opset
    return [written.gemm(inputs, place.output, name=name, opset=opset, transB=1)]


def _matmul(place: _Place, has_bias: bool, bear: Bear) -> list[NodeProto]:
    name = place.node.name
    is_left = isinstance(place.site, LinearSite) and place.site.position == 0
    if is_left:
        inputs = [bear("weight", _dense), place.source]
    else:
        inputs = [place.source, bear("weight", lambda kernel: _dense(kernel).T)]
    if not has_bias:
        return [helper.make_node("MatMul", inputs, [place.output], name=name)]
    inner = place.namer.fresh(f"{place.output}_before_bias")
    rank, opset = place.rank, place.opset
    axis = rank - 2 if is_left else rank - 1

    def laid(kernel: Kernel) -> Array:
        return kernel.bias.reshape(written.shape_of_summand(len(kernel.bias), axis, rank, opset))

    bias = bear("bias", laid)
    added = place.namer.fresh(f"{name}_add") if name else ""
    return [
        helper.make_node("MatMul", inputs, [inner], name=name),
        written.add(inner, bias, place.output, name=added, opset=opset, axis=axis, rank=rank),
    ]


def _batch_norm(place: _Place, has_bias: bool, bear: Bear) -> list[NodeProto]:
    """gamma' = a * sqrt(var + eps), beta' = b + a * mean"""
    site = place.site
    assert isinstance(site, AffineSite)
    scale = bear("scale", lambda kernel: _constants(kernel, site)[0])
    shift = bear("B", lambda kernel: _constants(kernel, site)[1])
    proto = NodeProto()
    proto.CopyFrom(place.node.proto)
    del proto.input[:], proto.output[:]
    proto.input.extend([place.source, scale, shift, *place.node.inputs[3:]])
    proto.output.append(place.output)
    proto.name = place.node.name
    return [proto]


def _constants(kernel: Kernel, site: AffineSite) -> tuple[Array, Array]:
    """The scale and the B of a BatchNormalization with its own mean and deviation."""
    assert site.mean is not None and site.deviation is not None
    affine = Affine(kernel.weight.reshape(-1), kernel.bias)
    return affine.as_batchnorm(site.mean, site.deviation)


_MAKERS = {"BatchNormalization": _batch_norm, "MatMul": _matmul, "Gemm": _gemm}
"""By the carrier's op; the others are convolutions."""
