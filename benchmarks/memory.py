"""Peak extra memory of one fold, as a multiple of the network's weights.

    python -m benchmarks.memory timm:resnet50 bnfold     prints one JSON document

The process is fresh. It makes the network, runs it once and folds a small network with the same
tool, so that imports, thread pools and the workspaces of the convolutions are there already. Then
it gives free memory back to the system (malloc_trim), sets the kernel's high-water mark of
resident memory to the present value (5 into /proc/self/clear_refs), folds, and reads the mark
(VmHWM). What it rose by is the extra memory: the copy of the weights, everything in between, and
the activations of the forward that a capture may run. `forward` in the place of a tool measures
one forward pass and nothing else: what a capture that runs the network cannot go below. Linux with
glibc only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers import FOLDERS
from benchmarks.zoo import create

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"
FORWARD = "forward"


def main(arguments: list[str] | None = None) -> int:
    """Measure one network with one tool."""
    parser = argparse.ArgumentParser(description="Peak extra memory of one fold.")
    parser.add_argument("name")
    parser.add_argument("tool", choices=(*FOLDERS, FORWARD))
    options = parser.parse_args(arguments)
    model, example = create(options.name, dtype=torch.float32, image=224, batch=1)
    fold = _forward if options.tool == FORWARD else FOLDERS[options.tool]
    _warm_up(model, example, fold)
    weights = weight_bytes(model)
    extra = peak_extra_bytes(lambda: fold(model, example))
    print(json.dumps({"weights": weights, "extra": extra, "ratio": extra / weights}))
    return 0


def _forward(model: nn.Module, example: Tensor) -> object:
    with torch.no_grad():
        return model(example)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_extra_bytes(action: Callable[[], object]) -> int:
    """How far resident memory rises above its present size while `action` runs."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)
    before = _resident("VmRSS")
    result = action()
    peak = _resident("VmHWM")
    del result
    return max(peak - before, 0)


def _warm_up(
    model: nn.Module, example: Tensor, fold: Callable[[nn.Module, Tensor], object]
) -> None:
    with torch.no_grad():
        model(example)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    fold(small, example)


def _resident(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"{_STATUS} has no line {key}")


if __name__ == "__main__":
    sys.exit(main())
