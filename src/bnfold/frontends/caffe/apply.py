"""Turn a plan into new arrays.

    linear    core/weights.py has the formulas; a bias is born where one is needed and none is
    Scale     gamma' = a', beta' = b'; the same for Bias and for SegNet's BN

Everything is float64 and is rounded once, to the form that the array gets in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._storage import Weights
from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.fitting import Overflow
from bnfold.core.plan import AffineEdit, LinearEdit, Plan
from bnfold.core.weights import fold_bias, fold_weight
from bnfold.frontends.caffe.caffemodel import Blob
from bnfold.frontends.caffe.lifter import AffineSite, Lifted, LinearSite
from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.write import Changes


@dataclass(slots=True)
class NewArrays:
    """What the plan does to the file of weights and to the text."""

    changes: Changes = field(default_factory=Changes)
    biased: dict[int, tuple[Layer, str]] = field(default_factory=dict)
    """Layers that get a bias, by their id, with the message that says so."""
    removed: list[Layer] = field(default_factory=list)
    """Layers that go, in the order of the file."""


def new_arrays(net: Net, lifted: Lifted, plan: Plan, *, weights: Weights) -> NewArrays:
    """Everything that changes; weights are computed when they are written. Raises Overflow."""
    made = _Maker(net, weights)
    for number, edit in plan.linear.items():
        site = lifted.sites[number]
        assert isinstance(site, LinearSite)
        if site.is_editable and id(site.layer) not in made.done:
            made.done.add(id(site.layer))
            made.linear(number, site, edit)
    for number, change in plan.affine.items():
        step, role = lifted.sites[number], lifted.graph.ops[number].role
        assert isinstance(step, AffineSite) and isinstance(role, g.AffineStep)
        made.affine(number, step, role, change)
    if made.overflown:
        raise Overflow(*made.overflown)
    gone = {id(lifted.sites[number].layer) for number in plan.removed}
    made.new.removed = [layer for layer in net.layers if id(layer) in gone]
    made.drop(gone)
    return made.new


class _Maker:
    def __init__(self, net: Net, weights: Weights) -> None:
        self.net = net
        self.new = NewArrays(Changes(weights=weights))
        self.done: set[int] = set()
        self.overflown: list[int] = []
        """Numbers of the ops whose new arrays do not fit their dtype."""
        self.index = {id(layer): n for n, layer in enumerate(net.weights.layers)}

    def linear(self, number: int, site: LinearSite, edit: LinearEdit) -> None:
        """A weight, and a bias if there is one or one is needed."""
        layer, changes = site.layer, self.new.changes
        stored = self.index[id(layer.stored)]
        if edit.rescales:
            make = partial(_weight, site, edit, changes.form(site.weight).dtype)
            changes.arrays[stored, 0] = make
            self._check(number, site.weight, make, _growth(edit))
        is_scaled = bool((edit.output_scale != 1.0).any() or edit.zeroed.any())
        if not edit.needs_bias and (site.bias is None or not is_scaled):
            return
        old = None if site.bias is None else site.bias.read().reshape(-1)
        weight = site.weight.read().reshape(site.matrix)
        content = fold_bias(weight, old, edit, site.layout, site.groups)
        self._give(number, layer, 1, content, site.part)

    def affine(self, number: int, site: AffineSite, role: g.AffineStep, edit: AffineEdit) -> None:
        """The constants of a step that stays."""
        if site.scale is not None and (edit.scale != role.scale).any():
            self._give(number, site.layer, site.scale, edit.scale.reshape(-1), "scale_param")
        if site.shift is not None and (edit.shift != role.shift).any():
            self._give(number, site.layer, site.shift, edit.shift.reshape(-1), "scale_param")

    def drop(self, gone: set[int]) -> None:
        """Stored layers whose layers go; not what the other phase loads under that name."""
        going = {layer.name for layer in self.net.layers if id(layer) in gone}
        going -= {layer.name for layer in self.net.others}
        for index, stored in enumerate(self.net.weights.layers):
            if stored.name in going:
                self.new.changes.dropped.add(index)

    def _give(self, number: int, layer: Layer, index: int, content: FloatArray, part: str) -> None:
        """New content for an array, which is born if the layer does not have it."""
        stored = self.index[id(layer.stored)]
        is_born = index == len(layer.blobs)
        like = layer.blobs[0 if is_born else index]
        if not _fits(content, self.new.changes.form(like).dtype):
            self.overflown.append(number)
        if not is_born:
            self.new.changes.arrays[stored, index] = partial(_as_it_is, content)
            return
        shape = like.shape if part == "scale_param" else (len(content),)
        if like.is_legacy and part != "scale_param":
            shape = (1, 1, 1, len(content))
        self.new.changes.born[stored] = content.reshape(shape)
        self.new.biased[id(layer)] = (layer, part)

    def _check(
        self, number: int, blob: Blob, make: Callable[[], NDArray[Any]], growth: float
    ) -> None:
        """Note an overflow; the array itself is computed only if it may come near one."""
        old = blob.read()
        limit = float(np.finfo(self.new.changes.form(blob).dtype).max) / 2
        largest = max(float(old.max(initial=0)), -float(old.min(initial=0)))
        if not np.isfinite(largest) or largest * growth < limit:
            return
        if not np.isfinite(make()).all():
            self.overflown.append(number)


def _weight(site: LinearSite, edit: LinearEdit, dtype: np.dtype[Any]) -> NDArray[Any]:
    weight = site.weight.read().reshape(site.matrix).astype(dtype, copy=False)
    return fold_weight(weight, edit, site.layout, site.groups)


def _as_it_is(content: FloatArray) -> FloatArray:
    return content


def _growth(edit: LinearEdit) -> float:
    """An upper bound of what a weight is multiplied by; infinite where something is added."""
    if edit.added is not None:
        return np.inf
    out = float(np.abs(edit.output_scale).max(initial=0))
    return out * float(np.abs(edit.input_inverse).max(initial=0))


def _fits(content: FloatArray, dtype: np.dtype[Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(content.astype(dtype)).all())
