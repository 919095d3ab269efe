"""How the tensors of a run may lie in memory in other runs, and who would notice.

A BatchNorm makes a tensor that is contiguous, or in channels_last where its input is stored in that
order; arithmetic makes one without gaps, in the order of its input. With the step gone, its readers
get the input as it lies: transposed, a part of a larger tensor, expanded. A run shows one layout.
Of the others this much is known, from what made a tensor:

    PLAIN    contiguous, always (a linear op, a LayerNorm)
    DENSE    contiguous or channels_last: both survive a BatchNorm (a convolution, a pool, a concat)
    ANYHOW   an input of the model, what a view makes, and all that nothing is known of

Elementwise ops keep how their operands lie.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from functools import cached_property
from typing import Any

import torch
from torch import nn

from bnfold.frontends.torch.batch_norms import is_batch_norm, is_batch_norm_event
from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, CLIPS
from bnfold.frontends.torch.lifter import AffineSite
from bnfold.frontends.torch.ops import aten_name, functional
from bnfold.frontends.torch.recording import OVERLAY, Event, Recording, Value, values


class Lies(IntEnum):
    """How a tensor may lie in memory; what is larger allows for more."""

    PLAIN = 0
    DENSE = 1
    ANYHOW = 2


def copies_for_layout(recording: Recording, removed: Mapping[int, AffineSite]) -> set[int]:
    """Of removed ops, by their numbers: those whose output lay otherwise than their readers bear.

    Axes of length 1 count in the example's strides: they may be longer in other runs.
    """
    gone = {site.event: (op, site) for op, site in removed.items()}
    readers = _Readers(recording)
    known: dict[int, Lies] = {}
    copies = set()
    for event in recording.events if removed else ():
        lies = [_made(event, value, known) for value in event.outputs]
        if event.number in gone:
            op, site = gone[event.number]
            assert site.source is not None and site.output is not None
            given = known.get(site.source.number, Lies.ANYHOW)
            moved = site.source.strides != site.output.strides
            follows = _passes_order_on if is_batch_norm_event(event) else _passes_memory_on
            if moved or (given is Lies.ANYHOW and readers.ask(site.output, follows)):
                copies.add(op)
            elif site.source.storage != site.output.storage:
                lies = [given] * len(lies)
        known |= {v.number: how for v, how in zip(event.outputs, lies, strict=True) if v}
    return copies


def _made(event: Event, value: Value | None, known: Mapping[int, Lies]) -> Lies:
    """How an output of an op may lie, in whatever run."""
    if value is None:
        return Lies.ANYHOW
    if event.written is not None:
        return known.get(event.written.number, Lies.ANYHOW)
    if event.target == OVERLAY:
        return known.get(event.args[0].number, Lies.ANYHOW)
    keeps = _keeps(event)
    if not keeps and _name(event) not in _RESHAPES:
        return _made_anew(event, len(value.shape))
    given = list(values(event.args, event.kwargs))
    lies = max((known.get(each.number, Lies.ANYHOW) for each in given), default=Lies.ANYHOW)
    if keeps or lies is not Lies.DENSE:
        return lies
    # (N, C) of (N, C, H, W): no other order of the axes lets a view be taken.
    is_flat = len(value.shape) == 2 and value.shape[:1] == given[0].shape[:1]
    return Lies.PLAIN if is_flat else Lies.ANYHOW


class _Readers:
    """Who reads the values of a recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    @cached_property
    def _readers(self) -> dict[int, list[Event]]:
        readers: dict[int, list[Event]] = {}
        for event in self.recording.events:
            for value in values(event.args, event.kwargs):
                readers.setdefault(value.number, []).append(event)
        return readers

    @cached_property
    def _returned(self) -> set[int]:
        return {value.number for value, _ in self.recording.outputs}

    def ask(self, value: Value, passes_on: Callable[[Event, Value], bool]) -> bool:
        """Whether somebody would see how a value lies, perhaps behind ops that pass it on."""
        if self.recording.asked.layout:
            return True
        seen, todo = {value.number}, [value.number]
        while todo:
            number = todo.pop()
            if number in self._returned:
                return True
            for event in self._readers.get(number, ()):
                if _asks(event):
                    return True
                if passes_on(event, value):
                    made = {each.number for each in event.outputs if each} - seen
                    seen |= made
                    todo += made
        return False


def _passes_order_on(event: Event, _: Value) -> bool:
    """Whether an op may store its result in the order in which it gets its operands."""
    return _made_anew(event, 4) is Lies.ANYHOW


def _passes_memory_on(event: Event, value: Value) -> bool:
    """Whether an op hands on the very memory of a value: any other has no gaps.

    Arithmetic kept the order itself.
    """
    return any(made is not None and made.storage == value.storage for made in event.outputs)


def _name(event: Event) -> str:
    return functional(aten_name(event.target))


def _keeps(event: Event) -> bool:
    """Whether what it makes lies as what it gets."""
    if isinstance(event.target, nn.Module):
        return isinstance(event.target, CLIPS)
    name = _name(event)
    if not name or event.kwargs.get("memory_format") not in (None, torch.preserve_format):
        return False
    if name == "alias":  # in a module's code, x[:, :20] where x is no longer than that
        return event.call.node is not None
    return name in _ELEMENTWISE or torch.Tag.pointwise in getattr(event.target, "tags", ())


def _made_anew(event: Event, rank: int) -> Lies:
    """How an op lays out what it makes, whatever it gets; ANYHOW if that depends."""
    if isinstance(event.target, nn.Module):
        return _made_by_module(event.target, rank)
    name = _name(event)
    if name in _PLAIN or _is_put_in_order(event, name):
        return Lies.PLAIN
    if name in ("cat", "convolution", "_convolution") or is_batch_norm(name):
        return Lies.DENSE if rank > 3 else Lies.PLAIN
    if name in _OF_ONE_AXIS:
        return Lies.PLAIN
    is_dense = name in _DENSE or name.startswith("upsample_") or name.startswith("_upsample_")
    return Lies.DENSE if is_dense and rank > 3 else Lies.ANYHOW


def _is_put_in_order(event: Event, name: str) -> bool:
    wanted: Any = event.kwargs.get("memory_format")
    if name == "contiguous":
        return wanted in (None, torch.contiguous_format) and len(event.args) < 2
    return name == "clone" and wanted is torch.contiguous_format


def _made_by_module(module: nn.Module, rank: int) -> Lies:
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.ConvTranspose1d):
        return Lies.PLAIN
    if isinstance(module, CLIPS):
        return Lies.ANYHOW
    if rank > 3:
        return Lies.DENSE
    return Lies.PLAIN if isinstance(module, BATCH_NORMS) else Lies.ANYHOW


def _asks(event: Event) -> bool:
    """Whether an op may fail, do something else or show it where its input lies otherwise."""
    if isinstance(event.target, nn.Module) or event.target == OVERLAY:
        return False
    return _name(event) in _ASKING or not _name(event)


def _names(*texts: str) -> Collection[str]:
    return frozenset(name for text in texts for name in text.split())


_PLAIN = _names("linear mm addmm bmm baddbmm embedding layer_norm native_layer_norm")
_OF_ONE_AXIS = _names("conv1d conv_transpose1d")
_DENSE = _names(
    "conv2d conv3d conv_transpose2d conv_transpose3d max_pool2d max_pool3d avg_pool2d avg_pool3d",
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_avg_pool2d adaptive_avg_pool3d",
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
    "group_norm native_group_norm",
)
_ELEMENTWISE = _names(
    "dropout native_dropout alpha_dropout feature_dropout feature_alpha_dropout detach",
    "lift_fresh prelu _prelu_kernel hardswish hardsigmoid relu6 _to_copy to",
)
"""Besides those that PyTorch has marked as pointwise."""
_RESHAPES = _names(
    "view reshape flatten unflatten squeeze unsqueeze _unsafe_view _reshape_copy _reshape_alias",
    "mean sum amax amin",
)
"""What is contiguous stays so."""
_ASKING = _names(
    "view _unsafe_view _reshape_copy _reshape_alias view_as view_as_complex as_strided",
    "as_strided_copy as_strided_scatter",
)
"""Views that some layouts refuse. In a module, reshape and flatten are recorded as such, too."""
