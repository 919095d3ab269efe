"""Run a Caffe net without Caffe: its layers in the order of the file, its blobs by name.

Memory is shared as in Caffe, because a layer that works in place overwrites what others read: the
tops of Split, Flatten, Reshape, a Concat of one and a Slice into one are their bottom's memory.

A layer that is not known here, or is configured in a way that is not, is left out, and so is all
that reads what it would have made. What such a layer reads is part of the result instead: nothing
may have been rescaled there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bnfold.frontends.caffe import run_elementwise, run_shapes, run_weights, run_windows
from bnfold.frontends.caffe.run_step import Fields, NotRunnableError, Run, Step

RUNS: dict[str, Run] = (
    run_weights.LAYERS | run_windows.LAYERS | run_elementwise.LAYERS | run_shapes.LAYERS
)
"""By layer type."""
_VALUES_READ = {"Crop": 1, "PriorBox": 0, "PriorBoxClustered": 0}
"""How many bottoms have their values read; of the others a layer of these types reads the shape."""


@dataclass(frozen=True, slots=True)
class RunLayer:
    """A layer of a net, as far as a run needs it."""

    name: str
    type: str
    """In the spelling of current Caffe, whatever the file's."""
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    fields: Fields
    """The layer's message."""
    blobs: tuple[Tensor, ...]
    """Its parameters, of the run's dtype."""
    is_testing: bool = True
    """Whether it runs in the TEST phase."""
    unknown: tuple[str, ...] = ()
    """Fields that nobody here knows."""


@dataclass(slots=True)
class Execution:
    """What a run computed."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """The net's outputs by blob name: whatever no layer reads, sorted as Caffe sorts them."""
    read: dict[str, Tensor] = field(default_factory=dict)
    """What the layers that were left out read, by 'layer.bottom[i]'."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Per layer that was left out for its own sake, why."""

    @property
    def values(self) -> dict[str, Tensor]:
        """Everything that a fold must not change."""
        return {**self.outputs, **self.read}


Watch = Callable[[RunLayer, Sequence[Tensor | None]], None]
"""Is told what each layer made, before anything else may overwrite it."""


def execute(
    layers: Iterable[RunLayer], inputs: Mapping[str, Tensor], watch: Watch | None = None
) -> Execution:
    """Run the layers on these blobs. Raises ValueError where an operand does not fit a layer."""
    execution = Execution()
    blobs: dict[str, Tensor | None] = {name: value.clone() for name, value in inputs.items()}
    unread: dict[str, None] = dict.fromkeys(inputs)
    with torch.no_grad():
        for layer in layers:
            tops = _run(layer, blobs, execution)
            if watch is not None:
                watch(layer, tops)
            for name in layer.bottoms:
                unread.pop(name, None)
            for name, top in zip(layer.tops, tops, strict=True):
                blobs[name] = top
                unread[name] = None
    for name in sorted(unread):
        output = blobs[name]
        if output is not None and name not in inputs:
            execution.outputs[name] = output
    return execution


def _run(
    layer: RunLayer, blobs: Mapping[str, Tensor | None], execution: Execution
) -> Sequence[Tensor | None]:
    nothing = [None] * len(layer.tops)
    given = [blobs.get(name) for name in layer.bottoms]
    bottoms = tuple(bottom for bottom in given if bottom is not None)
    run = RUNS.get(layer.type)
    try:
        if run is None:
            raise NotRunnableError(f"no layer type {layer.type} is known")
        if layer.unknown:
            raise NotRunnableError(f"not known: {', '.join(layer.unknown)}")
        if len(bottoms) < len(given):
            return nothing
        tops = run(Step(layer.fields, layer.blobs, bottoms, len(layer.tops), layer.is_testing))
    except NotRunnableError as error:
        _leave_out(layer, given, str(error), execution)
        return nothing
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(str(tuple(bottom.shape)) for bottom in bottoms)
        raise ValueError(f"layer {layer.name} ({layer.type}) on {shapes}: {error}") from error
    if len(tops) != len(layer.tops):
        _leave_out(layer, given, f"{len(layer.tops)} tops", execution)
        return nothing
    return [_put(layer, place, top, bottoms) for place, top in enumerate(tops)]


def _put(layer: RunLayer, place: int, top: Tensor, bottoms: Sequence[Tensor]) -> Tensor:
    """A top where it belongs: in the bottom's memory, if it is called alike."""
    if layer.tops[place] not in layer.bottoms[place : place + 1]:
        return top.contiguous()
    bottoms[place].copy_(top)
    return bottoms[place]


def _leave_out(
    layer: RunLayer, bottoms: Sequence[Tensor | None], why: str, execution: Execution
) -> None:
    key, copies = layer.name, 1
    while key in execution.left_out:
        copies += 1
        key = f"{layer.name} ({copies})"
    execution.left_out[key] = why
    for number, bottom in enumerate(bottoms):
        if bottom is not None and number < _VALUES_READ.get(layer.type, len(bottoms)):
            execution.read[f"{key}.bottom[{number}]"] = bottom.clone()
