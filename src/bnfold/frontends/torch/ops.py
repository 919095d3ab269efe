"""Which op an event is, by its whole name, and its arguments by the names of its schema.

An op is its namespace, its name and its overload. The tables know ATen's ops by their names, in the
overloads that mean what the name says: `max.other` is not the maximum over an axis, `view.dtype`
moves no values, `mm.dtype` rounds, and what another library calls `linear` may be anything.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from bnfold.frontends.torch.recording import Const, Event, Value


class UnfitError(Exception):
    """An op has arguments of a form that the table was not written for: nothing is known of it."""


def aten_name(target: Any) -> str:
    """`add`, or `add_` where it works in place; "" for all that is not ATen's."""
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    if target.namespace == "aten":
        return str(target._opname)
    return _PRIMS.get(str(target._opname), "") if target.namespace == "prims" else ""


_PRIMS = {"convert_element_type": "_to_copy", "neg": "neg", "abs": "abs", "sign": "sign"}
"""The primitives that mean the same as an op of ATen, by its name."""


@functools.lru_cache(maxsize=4096)
def op_name(target: Any) -> str:
    """The name by which the tables may look an op up; "" for what they do not know."""
    name = aten_name(target)
    overloads = OVERLOADS.get(name) or OVERLOADS.get(name.removesuffix("_")) or _DEFAULT
    return name if name and overload_of(target) in overloads else ""


def overload_of(target: Any) -> str:
    """`Tensor` of `add.Tensor`; "" for the overload without a name."""
    name = str(target._overloadname)
    return "" if name == "default" else name


def node_of(event: Event) -> fx.Node | None:
    """The node that an event is; None for one of several that a node was taken apart to."""
    node = event.call.node
    return node if node is not None and node.target is event.target else None


def functional(name: str) -> str:
    """The name of the op that computes the same in memory of its own."""
    return name if name.startswith("__") else name.removesuffix("_")


_DEFAULT = ("",)
_BINARY = ("Tensor", "Scalar")

OVERLOADS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub", "mul", "multiply", "true_divide"), _BINARY),
    **dict.fromkeys(("div", "divide"), (*_BINARY, "Tensor_mode", "Scalar_mode")),
    **dict.fromkeys(("ge", "gt", "le", "lt", "lerp"), _BINARY),
    **dict.fromkeys(("max", "mean"), ("", "dim")),
    "sum": ("", "dim_IntList"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), ("", "padding")),
    "conv_transpose2d": ("input",),
    "conv_transpose3d": ("input",),
    "_convolution": ("", "deprecated"),
    "_native_batch_norm_legit": ("", "no_stats"),
    **dict.fromkeys(("squeeze",), ("", "dim", "dims")),
    **dict.fromkeys(("transpose", "select", "softmax", "unbind", "unflatten"), ("int",)),
    **dict.fromkeys(("hsplit", "vsplit"), ("int", "array")),
    "flatten": ("using_ints",),
    "index": ("Tensor", "Tensor_hacked_twin"),
    "movedim": ("int", "intlist"),
    "slice": ("Tensor",),
    "where": ("self",),
    "split": ("", "Tensor", "sizes"),
    "unsafe_split": ("Tensor",),
    "tensor_split": ("sections", "indices"),
    "repeat_interleave": ("self_int",),
    "to": ("device", "dtype", "other", "prim_Device", "prim_dtype", "prim_other"),
    **{
        f"upsample_{kind}": ("", "vec")
        for kind in (
            *("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d"),
            "trilinear3d",
        )
    },
    **dict.fromkeys([f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)], ("", "vec")),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), ("", "vec")),
}
"""The overloads of each op that the tables know; of all others the one without a name."""


class Arguments:
    """An op's arguments by the names of its schema, defaults included."""

    def __init__(self, event: Event) -> None:
        self.bound: dict[str, Any] = {}
        schema = getattr(event.target, "_schema", None)
        if schema is None:
            raise UnfitError
        for index, argument in enumerate(schema.arguments):
            if index < len(event.args):
                self.bound[argument.name] = event.args[index]
            elif argument.name in event.kwargs:
                self.bound[argument.name] = event.kwargs[argument.name]
            elif argument.has_default_value():
                self.bound[argument.name] = argument.default_value

    def __getitem__(self, name: str) -> Any:
        """The argument as it is."""
        if name not in self.bound:
            raise UnfitError
        return self.bound[name]

    def get(self, *names: str) -> Any:
        """The argument of the first of these names that the op has; None where it has none."""
        return next((self.bound[name] for name in names if name in self.bound), None)

    @property
    def first(self) -> Any:
        """What the op is applied to; schemas call it `self`, `input` or `a`."""
        return next(iter(self.bound.values()), None)

    def number(self, name: str) -> float:
        """A real number."""
        value = self[name]
        if not isinstance(value, int | float):
            raise UnfitError
        return float(value)

    def optional_number(self, name: str, missing: float) -> float:
        """A real number, or what stands for None."""
        return missing if self.get(name) is None else self.number(name)

    def whole(self, name: str) -> int:
        """A whole number."""
        value = self[name]
        if not isinstance(value, int):
            raise UnfitError
        return value

    def wholes(self, name: str) -> list[int]:
        """A list of whole numbers; one stands for itself."""
        value = self[name]
        listed = list(value) if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, int) for part in listed):
            raise UnfitError
        return listed

    def tensors(self, name: str) -> list[Value | Const]:
        """A list of tensors."""
        value = self[name]
        if not isinstance(value, list | tuple):
            raise UnfitError
        if not all(isinstance(part, Value | Const) for part in value):
            raise UnfitError
        return list(value)
