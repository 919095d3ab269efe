"""What is other in the next run: numbers, constants and paths that the state of a program decides.

A value that looks constant may be state: a moving average that is 0 on the first run, a counter, a
draw of chance. So the copy that was run is run again as the first run left it, and what the two
runs took for constant is compared. What differs is varying: the ops that take it are opaque. The
second run is skipped where the program has no place to keep state and uses no number or constant
besides its parameters, as in a plain ResNet.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.held import (
    TABLES,
    attributes_of,
    in_class,
    is_a,
    length_of,
    parts_of,
)
from bnfold.frontends.torch.parting import part_at, take_over_uses
from bnfold.frontends.torch.record import Recorder
from bnfold.frontends.torch.recording import Const, Event, Recording, Value, leaves_of
from bnfold.frontends.torch.shadow import Shadow
from bnfold.frontends.torch.tensor_facts import is_equal

_TABLES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_STATELESS = (int, float, str, bytes, type(None), torch.dtype, torch.device, type, nn.Module)
_EMPTY = frozenset((dict, OrderedDict, list, set))
_DEEPEST = 8
"""So many tables in each other are looked into."""
_PURE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)

Snapshot = list[tuple[dict[str, Any], dict[str, Any]]]


def snapshot(modules: Sequence[nn.Module]) -> Snapshot:
    """The modules' attributes and tables, with what they hold."""
    return [
        (now, dict(now))
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for own in (module.__dict__,)
        for now in (own, *(own[name] for name in _TABLES))
    ]


def may_vary(
    recording: Recording, recorders: Sequence[Recorder], shadow: Shadow, was: Snapshot
) -> bool:
    """Whether another run may do something else than this one."""
    if any(recorder.values.saved or recorder.constants.strange for recorder in recorders):
        return True
    if any(_differs(now, before) for now, before in was):
        return True
    if any(_takes_numbers(event) for event in recording.events):
        return True
    return any(_may_hold_state(module, shadow.original(module)) for module in shadow.modules)


_NUMBERS = (int, float, str)


def counts(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a run left other numbers among a module's attributes than it found."""
    for key, value in now.items():
        was = before.get(key)
        if value is not was and _is_another(value, was):
            return True
    return False


def _is_another(value: Any, before: Any) -> bool:
    """Whether it is, or holds, other numbers; or more or less of anything."""
    if is_a(value, _NUMBERS):
        return not _is_same_number(value, before)
    kind = type(value)
    if kind in _EMPTY and not value and type(before) is kind and not before:
        return False  # most of what a module holds
    if not is_a(value, TABLES):
        return False
    if not is_a(before, TABLES) or length_of(value) != length_of(before):
        return True
    return not is_a(value, (set, frozenset)) and any(
        is_a(one, _NUMBERS) and not _is_same_number(one, other)
        for one, other in zip(parts_of(value), parts_of(before), strict=True)
    )


def _is_same_number(one: Any, other: Any) -> bool:
    return type(one) is type(other) and _is_equal_to(one, other)


def _differs(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return len(now) != len(before) or any(
        key not in before or value is not before[key] for key, value in now.items()
    )


def _takes_numbers(event: Event) -> bool:
    if isinstance(event.target, nn.Module):
        return False
    if any(isinstance(leaf, Const) for leaf in leaves_of((event.args, event.kwargs))):
        return True
    name = str(getattr(event.target, "_opname", "")).removesuffix("_")
    return name not in _SHAPED and any(
        type(leaf) in (int, float) for leaf in leaves_of((event.args, event.kwargs))
    )


_SHAPED = frozenset(
    {
        "view",
        "_unsafe_view",
        "flatten",
        "mean",
        "max_pool2d",
        "max_pool2d_with_indices",
        "avg_pool2d",
        "cat",
        "transpose",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
        "permute",
        "unsqueeze",
        "squeeze",
        "upsample_nearest2d",
    }
)
"""Ops whose numbers say how values are arranged: programs write them down."""


def _may_hold_state(module: nn.Module, original: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__.startswith("torch.nn.modules"):
        return False
    for key, value in module.__dict__.items():
        if key in _INTERNAL or _is_stateless(value):
            continue
        # A list is no state as long as the run left in it what was there.
        if not _is_stateless_tree(value) or not _is_equal_to(value, original.__dict__.get(key)):
            return True
    forward = in_class(kind, "forward")
    function = attributes_of(forward).get("__wrapped__", forward)
    if not is_a(function, types.FunctionType):
        return True
    code = function.__code__
    if code.co_freevars not in ((), ("__class__",)):
        return True
    return any(
        not is_a(function.__globals__[name], _PURE)
        for name in code.co_names
        if name in function.__globals__
    )


_INTERNAL = frozenset(nn.Module().__dict__)


def _is_stateless_tree(value: Any) -> bool:
    """Whether it is tables in tables of what holds no state; too deep ones are none."""
    pending, met = [(value, _DEEPEST)], set[int]()
    while pending:
        part, depth = pending.pop()
        if is_a(part, (list, tuple, set, dict)):
            if not depth:
                return False
            if id(part) not in met:
                met.add(id(part))
                pending += [(inner, depth - 1) for inner in parts_of(part)]
        elif not is_a(part, _STATELESS) or is_a(part, nn.Module):
            return False
    return True


def _is_stateless(value: Any, depth: int = _DEEPEST) -> bool:
    if is_a(value, tuple):
        return depth > 0 and all(_is_stateless(part, depth - 1) for part in parts_of(value))
    return is_a(value, _STATELESS)


def other_values(tree: Any) -> Any:
    """Example inputs of the same shapes with other values; numbers and indices stay."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor * 0.75 + 0.125 if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(Tensor, moved, tree)


def mark_varying(
    first: Recording, second: Recording, changed: set[int], shadow: Shadow, *, moved: bool
) -> None:
    """Note in the first recording what was other in the second."""
    first.changed |= changed
    first.handed_out |= second.handed_out
    take_over_uses(first, second)
    aligned, members = 0, first.members | second.members
    for event, twin in zip(first.events, second.events, strict=False):
        if not _is_same_op(event, twin, members):
            break
        aligned += 1
        if (
            not _is_same(event, twin)
            or twin.number in second.varying
            or _takes(event, changed, shadow)
        ):
            first.varying.add(event.number)
    if moved and first.varying:
        # With other inputs a constant was another one: it came from values in some unseen way, and
        # with whatever weights.
        first.varying.update(event.number for event in first.events)
        first.owned.clear()
        first.members = frozenset()
    if aligned < max(len(first.events), len(second.events)):
        if moved:  # another path: nothing that was seen is what the next run does
            first.varying.update(event.number for event in first.events)
        part_at(first, second, aligned)


def _is_same_op(first: Event, second: Event, members: Collection[int]) -> bool:
    if first.target is not second.target and not _are_twins(first.target, second.target, members):
        return False
    shapes = [
        [value.shape if value else None for value in event.outputs] for event in (first, second)
    ]
    return shapes[0] == shapes[1]


def _are_twins(first: Any, second: Any, members: Collection[int]) -> bool:
    """Whether they are modules that the code makes anew in each run, alike and without tensors."""
    if type(first) is not type(second) or not isinstance(first, nn.Module):
        return False
    if any(id(module) in members or module.state_dict() for module in (first, second)):
        return False
    held, other = vars(first), vars(second)
    return held.keys() == other.keys() and all(_is_equal_to(held[key], other[key]) for key in held)


def _takes(event: Event, changed: set[int], shadow: Shadow) -> bool:
    return any(
        id(shadow.original(leaf.origin)) in changed
        for leaf in leaves_of((event.args, event.kwargs))
        if isinstance(leaf, Const)
    )


def _is_same(first: Event, second: Event) -> bool:
    left, right = (leaves_of((event.args, event.kwargs)) for event in (first, second))
    return len(left) == len(right) and all(map(_agree, left, right))


def _agree(first: Any, second: Any) -> bool:
    if isinstance(first, Const) and isinstance(second, Const):
        return is_equal(first.tensor, second.tensor)
    if isinstance(first, Value) or isinstance(second, Value):
        return isinstance(first, Value) and isinstance(second, Value)
    if isinstance(first, float) and first != first:
        return isinstance(second, float) and second != second
    return _is_equal_to(first, second)


def _is_equal_to(one: Any, other: Any) -> bool:
    """Whether they are known to be equal: a table in itself and some of TorchScript do not tell."""
    try:
        return one is other or bool(one == other)
    except Exception:  # whatever a class of the user's raises
        return False
