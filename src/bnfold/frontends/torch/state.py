"""What is other in the next run: numbers, constants and paths that the state of a program decides.

A value that looks constant may be state: a moving average that is 0 on the first run, a counter, a
draw of chance. So the copy that was run is run again as the first run left it, and what the two
runs took for constant is compared. What differs is varying: the ops that take it are opaque. The
second run is skipped where the program has no place to keep state and uses no number or constant
besides its parameters, as in a plain ResNet.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.parting import part_at, take_over_uses
from bnfold.frontends.torch.record import Recorder
from bnfold.frontends.torch.recording import Const, Event, Recording, Value, leaves_of
from bnfold.frontends.torch.shadow import Shadow
from bnfold.frontends.torch.tensor_facts import is_equal

_TABLES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_STATELESS = (int, float, str, bytes, type(None), torch.dtype, torch.device, type, nn.Module)
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
_HOLDERS = (list, tuple, dict, set, deque)


def counts(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a run left other numbers among a module's attributes than it found."""
    for key, value in now.items():
        was = before.get(key)
        if value is not was and _is_another(value, was):
            return True
    return False


def _is_another(value: Any, before: Any) -> bool:
    """Whether it is, or holds, other numbers; or more or less of anything."""
    if isinstance(value, _NUMBERS):
        return type(value) is not type(before) or value != before
    if not isinstance(value, _HOLDERS):
        return False
    if not isinstance(before, _HOLDERS) or len(value) != len(before):
        return True
    parts = [held.values() if isinstance(held, dict) else held for held in (value, before)]
    return not isinstance(value, set) and any(
        isinstance(one, _NUMBERS) and one != other for one, other in zip(*parts, strict=True)
    )


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
        if not _is_stateless_tree(value) or value != original.__dict__.get(key):
            return True
    function = getattr(kind.forward, "__wrapped__", kind.forward)
    code = getattr(function, "__code__", None)
    if code is None or code.co_freevars not in ((), ("__class__",)):
        return True
    return any(
        not isinstance(function.__globals__[name], _PURE)
        for name in code.co_names
        if name in function.__globals__
    )


_INTERNAL = frozenset(nn.Module().__dict__)


def _is_stateless_tree(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return all(map(_is_stateless_tree, value))
    if isinstance(value, dict):
        return all(map(_is_stateless_tree, value.values()))
    return isinstance(value, _STATELESS) and not isinstance(value, nn.Module)


def _is_stateless(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return isinstance(value, tuple) and all(map(_is_stateless, value))
    return isinstance(value, _STATELESS) and not isinstance(value, types.FunctionType)


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
    aligned = 0
    for event, twin in zip(first.events, second.events, strict=False):
        if not _is_same_op(event, twin):
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


def _is_same_op(first: Event, second: Event) -> bool:
    if first.target is not second.target:
        return False
    shapes = [
        [value.shape if value else None for value in event.outputs] for event in (first, second)
    ]
    return shapes[0] == shapes[1]


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
    try:
        return first is second or bool(first == second)
    except Exception:  # an object of TorchScript that cannot be compared
        return False
