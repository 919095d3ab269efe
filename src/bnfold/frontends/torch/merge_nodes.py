"""Write merges into an exported program: the carrier's node does the work of all.

    carrier            the node stays where it is, with the weight, bias and window of all
    a sum, a concat    goes, or is the one operand that it keeps, or keeps several
    what stood in      goes, with the parameters that nobody reads any more
    between

What the carrier reads is there already: it was made of that before.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from bnfold.core.affine import Affine, FloatArray
from bnfold.core.kernel import Kernel
from bnfold.core.merged import Merge
from bnfold.core.weights import exchanged
from bnfold.core.window import Window
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.editor import Editor
from bnfold.frontends.torch.lifter import AffineSite, LinearSite
from bnfold.frontends.torch.ops import op_name
from bnfold.frontends.torch.sweep import sweep

aten = torch.ops.aten
Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a carrier gets."""

    weight: Tensor
    bias: Tensor | None
    """None where it has none, and needs none."""

    @property
    def is_finite(self) -> bool:
        """Whether all numbers fit the dtype."""
        tensors = [self.weight] if self.bias is None else [self.weight, self.bias]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)


def content_of(kernel: Kernel, site: LinearSite | AffineSite) -> Content:
    """The numbers as the carrier's site keeps them."""
    if isinstance(site, AffineSite):
        assert site.mean is not None and site.deviation is not None
        assert site.statistics is not None
        affine = Affine(kernel.weight.reshape(-1), kernel.bias)
        gamma, beta = affine.as_batchnorm(site.mean, site.deviation)
        return Content(_tensor(gamma, site.statistics), _tensor(beta, site.statistics))
    weight = kernel.weight
    if kernel.window.is_transposed or _is_matrix_on_the_right(site):
        weight = exchanged(weight, kernel.groups)
    needs_bias = site.bias is not None or bool(kernel.bias.any())
    bias = _tensor(kernel.bias, site.weight) if needs_bias else None
    return Content(_laid_out(_tensor(weight, site.weight), site.weight), bias)


def _is_matrix_on_the_right(site: LinearSite) -> bool:
    return site.weight.ndim == 2 and site.layout.name == "IN_OUT"


def _tensor(content: FloatArray, like: Tensor) -> Tensor:
    array = np.ascontiguousarray(content)
    return torch.from_numpy(array).to(device=like.device, dtype=like.dtype, copy=True)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """With its channels last in memory, if the other one has them there."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = formats.get(like.ndim)
    if wanted is None or like.is_contiguous() or not like.is_contiguous(memory_format=wanted):
        return tensor
    return tensor.contiguous(memory_format=wanted)


# -------------------------------------------------------------------- how a node states a window


def stated(node: fx.Node, window: Window | None, groups: int) -> tuple[Any, Arguments] | None:
    """The op for the carrier's node, and its arguments behind the bias; None if there is none."""
    name = op_name(node.target)
    if is_batch_norm(name):
        return node.target, ()
    if window is None:
        return node.target, ()
    general = name in ("convolution", "_convolution")
    rank = len(window.kernel)
    stride, dilation, before = ([*axes] for axes in (window.stride, window.dilation, window.before))
    if window.is_transposed:
        extra = [front - back for front, back in zip(window.before, window.after, strict=True)]
        limits = (max(both) for both in zip(stride, dilation, strict=True))
        if any(not 0 <= more < limit for more, limit in zip(extra, limits, strict=True)):
            return None
        if general:
            return aten.convolution.default, (stride, before, dilation, True, extra, groups)
        return _TRANSPOSED[rank], (stride, before, extra, groups, dilation)
    if window.before == window.after:
        if general:
            return aten.convolution.default, (stride, before, dilation, False, [0] * rank, groups)
        return _CONVOLUTIONS[rank], (stride, before, dilation, groups)
    if general or not _is_same(window):
        return None
    return _SAME[rank], (stride, "same", dilation, groups)


def _is_same(window: Window) -> bool:
    """Whether PyTorch would pad so, asked for an output of the input's size."""
    return (
        set(window.stride) == {1}
        and not any(window.margin)
        and all(
            front == (front + back) // 2
            for front, back in zip(window.before, window.after, strict=True)
        )
    )


_CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_SAME = {1: aten.conv1d.padding, 2: aten.conv2d.padding, 3: aten.conv3d.padding}
_TRANSPOSED = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}


# -------------------------------------------------------------------- writing


class Writer:
    """Merges, one after the other, then what goes because of them."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.gone: list[fx.Node] = []

    def carry(
        self,
        node: fx.Node,
        source: fx.Node,
        merge: Merge,
        content: Content,
        site: LinearSite | AffineSite,
    ) -> None:
        """Let a node do the work of all; all nodes are those of the program as it was."""
        new, read = self.editor.find(node), self.editor.find(source)
        if isinstance(site, AffineSite):
            new.args = (read, *new.args[1:])
            self._affine(new, content, site)
        else:
            self._linear(new, read, merge, content, site)

    def _affine(self, node: fx.Node, content: Content, site: AffineSite) -> None:
        for name, old, tensor in (
            ("weight", site.gamma, content.weight),
            ("bias", site.beta, content.bias),
        ):
            assert tensor is not None
            if old is None:
                self.editor.give(node, name, tensor)
            else:
                self.editor.replace_tensor(old, tensor)

    def _linear(
        self, node: fx.Node, source: fx.Node, merge: Merge, content: Content, site: LinearSite
    ) -> None:
        weight, bias = _weight_and_bias(node)
        self.editor.replace_tensor(site.weight, content.weight)
        self.editor.restate(weight)
        if site.bias is not None:
            assert content.bias is not None and bias is not None
            self.editor.replace_tensor(site.bias, content.bias)
            self.editor.restate(bias)
        elif content.bias is not None:
            bias = self.editor.born(weight, "bias", node, content.bias)
        made = stated(node, merge.window, merge.groups)
        assert made is not None
        target, rest = made
        name = op_name(target)
        if name in _PRODUCTS and (name == "addmm" or bias is not None):
            if name == "matmul":
                target, weight = aten.linear.default, self._turned(node, weight)
                node.target, node.args = target, (source, weight, bias)
            else:
                node.target, node.args = aten.addmm.default, (bias, source, weight)
        elif name in _PRODUCTS:
            node.args = (source, weight)
        else:
            node.target, node.args = target, (source, weight, bias, *rest)
        node.kwargs = {}

    def _turned(self, node: fx.Node, weight: fx.Node) -> fx.Node:
        """A matrix (out, in), of one (in, out)."""
        with self.editor.graph.inserting_before(node):
            turned = self.editor.graph.call_function(aten.t.default, (weight,))
        self.editor.restate(turned)
        return turned

    def view(self, node: fx.Node, source: fx.Node, channels: int) -> None:
        """Let a view read something, with so many channels as its last axis."""
        view, sizes = self.editor.find(node), node.args[1]
        assert isinstance(sizes, list | tuple) and callable(view.target)
        kept = [self.editor.find(n) if isinstance(n, fx.Node) else n for n in sizes[:-1]]
        view.args = (self.editor.find(source), [*kept, channels])
        told = fx.map_arg(view.args, lambda argument: argument.meta["val"])
        view.meta["val"] = view.target(*told)
        view.meta.pop("tensor_meta", None)

    def widen_matrix(self, node: fx.Node, channels: int) -> None:
        """Say how many channels a matrix makes."""
        matrix = self.editor.find(node)
        rows = matrix.meta["val"].shape[0]
        matrix.meta["val"] = matrix.meta["val"].new_empty((rows, channels))
        matrix.meta.pop("tensor_meta", None)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Let the readers of a node's result read another one's."""
        old, new = result_of(self.editor.find(node)), result_of(self.editor.find(by))
        if old is not new:
            _describe(new, old)
            old.replace_all_uses_with(new)

    def enter(self, node: fx.Node, position: int, by: fx.Node) -> None:
        """Let a sum take a node's result for one of its operands."""
        total, new = self.editor.find(node), result_of(self.editor.find(by))
        _describe(new, operand(total, position))
        total.replace_input_with(operand(total, position), new)

    def widen(self, nodes: Iterable[fx.Node], siblings: Iterable[fx.Node], axis: int) -> None:
        """Say of what nodes make that it is what all of the siblings made."""
        whole = torch.cat([node.meta["val"] for node in siblings], axis)
        for node in nodes:
            new = self.editor.find(node)
            new.meta["val"] = whole
            new.meta.pop("tensor_meta", None)

    def shorten(self, node: fx.Node, positions: Iterable[int]) -> None:
        """Let a concat, or a stack, keep some of its operands."""
        total = self.editor.find(node)
        given = total.args[0] if total.args else total.kwargs["tensors"]
        assert isinstance(given, list | tuple)
        left = [given[position] for position in positions]
        if total.args:
            total.args = (left, *total.args[1:])
        else:
            total.update_kwarg("tensors", left)
        if op_name(total.target) == "stack":
            dim = total.args[1] if len(total.args) > 1 else total.kwargs.get("dim", 0)
            told = [each.meta["val"] for each in left if isinstance(each, fx.Node)]
            total.meta["val"] = torch.stack(told, dim)  # type: ignore[arg-type]
            total.meta.pop("tensor_meta", None)

    def collapse(self, node: fx.Node, listed: fx.Node, position: int) -> None:
        """Let the readers of a sum read one of its operands, which another node may list."""
        total, stack = self.editor.find(node), self.editor.find(listed)
        total.replace_all_uses_with(operand(stack, position))
        self.gone += [total] if stack is total else [total, stack]

    def erase(self, nodes: Iterable[fx.Node]) -> None:
        """Take out what nobody reads any more, and what was read by it alone."""
        doomed = {*self.gone, *(self.editor.find(node) for node in nodes)}
        sources: list[fx.Node] = []
        for node in reversed([*self.editor.graph.nodes]):
            if node in doomed:
                doomed |= {*node.users}  # the results of one that has several
                sources += node.all_input_nodes
                for part in [*node.users]:
                    self.editor.graph.erase_node(part)
                self.editor.graph.erase_node(node)
        sweep(self.editor, [node for node in sources if node not in doomed])


_PRODUCTS = ("mm", "matmul", "addmm")


def _weight_and_bias(node: fx.Node) -> tuple[fx.Node, Any]:
    """The arguments."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    bound = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if op_name(node.target) == "addmm":
        return bound["mat2"], bound["self"]
    weight = next(bound[name] for name in ("weight", "mat2", "other") if name in bound)
    return weight, bound.get("bias")


def _describe(node: fx.Node, like: fx.Node) -> None:
    """Say of what a node makes what was said of another one's."""
    for key in ("val", "tensor_meta"):
        if key in like.meta:
            node.meta[key] = like.meta[key]


def operand(total: fx.Node, position: int) -> fx.Node:
    """What a sum adds at a position, or a stack has there."""
    first = total.args[0] if total.args else total.kwargs.get("tensors")
    if isinstance(first, list | tuple):
        listed = first[position]
        assert isinstance(listed, fx.Node)
        return listed
    argument = total.args[position] if position < len(total.args) else total.kwargs["other"]
    assert isinstance(argument, fx.Node)
    return argument


def result_of(node: fx.Node) -> fx.Node:
    """The tensor that a node makes: itself, or the first of several."""
    if not isinstance(node.meta.get("val"), tuple | list):
        return node
    return next(user for user in node.users if is_first_part(user))


def is_first_part(node: fx.Node) -> bool:
    """Whether it takes the first of several results."""
    return node.target is operator.getitem and bool(node.args[1] == 0)
