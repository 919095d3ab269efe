"""Apply merges to a module: the carrier's new kernel, and what the other modules become."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from torch import nn

from bnfold.core.kernel import Kernel
from bnfold.core.window import Window
from bnfold.frontends.torch.apply import (
    become,
    changing,
    copied_with,
    marks,
    parameter_like,
)
from bnfold.frontends.torch.merge_walk import Change
from bnfold.frontends.torch.new_tensors import tensor_like
from bnfold.frontends.torch.nothing import MergedAway
from bnfold.frontends.torch.recording import Event, Recording


def apply_merges(model: nn.Module, changes: Sequence[Change], *, inplace: bool) -> nn.Module:
    """The merged module: the given one, or a copy.

    Raises UnsupportedModelError: it cannot be copied, or a module does not want to be changed.
    """
    new = list(chain(*(_stand_ins(model, change) for change in changes)))
    alone = [(module, stand_in) for module, rest, stand_in in new if not rest]
    if inplace:
        find: Any = lambda module: module  # noqa: E731
        for module, stand_in in alone:
            with changing(model, module):
                become(module, stand_in)
        merged = model
    else:
        merged, find = copied_with(model, {id(module): stand_in for module, stand_in in alone})
    for module, rest, stand_in in new:
        if not rest:
            continue
        with changing(model, module):
            become(find(module), nn.Sequential(stand_in, *map(find, rest)))
    return merged


def _stand_ins(
    model: nn.Module, change: Change
) -> Iterator[tuple[nn.Module, tuple[nn.Module, ...], nn.Module]]:
    """Modules that are replaced, what else they ran behind, and what stands there now."""
    with changing(model, change.seat[0]):
        yield (*change.seat, with_kernel(change.carrier, change.kernel))
    for kind, modules in ((MergedAway, change.away), (nn.Identity, change.identities)):
        for module, rest in modules.values():
            stand_in = kind().eval()
            if not rest:
                stand_in.__dict__.update(marks(module))
            yield module, rest, stand_in


def with_kernel(module: nn.Module, kernel: Kernel) -> Any:
    """A module of the same class that computes with this kernel."""
    new: Any = type(module).__new__(type(module))
    new.__dict__ = {name: _own(part) for name, part in module.__dict__.items()}
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    assert weight is not None
    content: Any = kernel.weight
    if isinstance(module, nn.Linear):
        content = content.reshape(content.shape[:2])
        new.out_features, new.in_features = content.shape
    else:
        _set_window(new, kernel.window)
        new.groups = kernel.groups
        new.out_channels, new.in_channels = len(content), content.shape[1] * kernel.groups
    new._parameters["weight"] = parameter_like(weight, tensor_like(content, weight))
    if bias is not None or kernel.bias.any():
        new._parameters["bias"] = parameter_like(
            weight if bias is None else bias, tensor_like(kernel.bias, weight)
        )
    return new


def _own(part: Any) -> Any:
    """A table of its own for everybody."""
    return copy.copy(part) if isinstance(part, dict) else part


def _set_window(module: Any, window: Window) -> None:
    module.kernel_size, module.stride = window.kernel, window.stride
    module.padding, module.dilation = window.before, window.dilation
    twice = [pad for pad in reversed(window.before) for _ in range(2)]
    module._reversed_padding_repeated_twice = twice


def is_as_expected(before: Recording, after: Recording, changes: Sequence[Change]) -> bool:
    """Whether the merged module does what the given one did, but for what is gone."""
    gone = frozenset().union(*(change.events for change in changes))
    part = frozenset().union(*(change.part for change in changes))
    left = [event for event in before.events if event.number not in gone]
    carriers = {c.call: c.carrier for c in changes if c.seat[0] is not c.carrier}
    if len(before.outputs) != len(after.outputs) or len(left) != len(after.events):
        return False
    return all(
        # In a chain, what the carrier makes has the channels of the last op.
        (
            type(now.target) is type(carriers[was.number])
            if was.number in carriers
            else _kind(was) == _kind(now)
        )
        and (was.number in part or _shapes(was) == _shapes(now))
        for was, now in zip(left, after.events, strict=True)
    )


def _shapes(event: Event) -> list[Any]:
    return [value and value.shape for value in event.outputs]


def _kind(event: Event) -> str:
    if isinstance(event.target, nn.Module):
        return f"{event.name} {type(event.target).__name__}"
    return str(event.target)
