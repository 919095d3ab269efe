"""What a fold did, measured without asking the fold: batch norms that run, and how outputs differ.

A BatchNorm counts where it runs, not where a module of that name sits. Two things are counted
during one real forward:

    1. calls of PyTorch's batch-norm operators in inference mode (training mode is another thing:
       weight standardisation is written with it);
    2. multiplications of an activation by one constant per channel, of shape (1, C, 1, 1), where
       no parameter had a part in the constant: that is what is left of a FrozenBatchNorm2d, as a
       module and also after torch.fx took the module apart. (A LayerScale has a parameter.)
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_TRAINING_ARGUMENT = {
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "batch_norm": 5,
    "cudnn_batch_norm": 5,
    "miopen_batch_norm": 5,
    "_batch_norm_impl_index": 5,
}
_NEVER_TRAINING = {"_native_batch_norm_legit_no_training", "_batch_norm_no_update"}


class _BatchNormCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the batch norms that run while it is active."""

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0
        # Tensors that depend on the input or on a parameter; the others are constants.
        self._dependent: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._mark(sources)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_batchnorm(func, args) or self._scales_channels(func, args):
            self.count += 1
        result = func(*args, **kwargs)
        if any(tensor in self._dependent for tensor in flatten([args, kwargs])):
            self._mark(flatten(result))
        return result

    def _mark(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._dependent[tensor] = True

    def _scales_channels(self, func: Any, args: tuple[Any, ...]) -> bool:
        if func.overloadpacket.__name__ not in ("mul", "mul_"):
            return False
        tensors = [value for value in args if isinstance(value, Tensor)]
        constants = [value for value in tensors if value not in self._dependent]
        return len(tensors) == 2 and len(constants) == 1 and _is_per_channel(constants[0])


def _is_per_channel(constant: Tensor) -> bool:
    # Shape: (1, C, 1, ...), as broadcast over an image.
    return constant.ndim > 2 and 1 < constant.numel() == constant.shape[1]


def _is_batchnorm(func: Any, args: tuple[Any, ...]) -> bool:
    name = func.overloadpacket.__name__
    if name in _NEVER_TRAINING:
        return True
    return name in _TRAINING_ARGUMENT and not args[_TRAINING_ARGUMENT[name]]


def count_batchnorms(model: nn.Module, example: Tensor) -> int:
    """How many batch norms run in one forward of `model`."""
    counter = _BatchNormCounter([example, *model.parameters()])
    with torch.no_grad(), counter:
        model(example)
    return counter.count


def flatten(output: Any) -> list[Tensor]:
    """Every tensor of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in flatten(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in flatten(value)]
    return []


@torch.no_grad()
def outputs(model: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that `model` gives for each of `inputs`, copied so that nothing changes them."""
    return [tensor.clone() for value in inputs for tensor in flatten(model(value))]


def relative_error(expected: list[Tensor], actual: list[Tensor]) -> float:
    """The largest max|a - b| / max|a| over the tensors; infinite where they cannot be compared."""
    if len(expected) != len(actual):
        return float("inf")
    return max((_tensor_error(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _tensor_error(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    expected, actual = expected.double(), actual.double()
    difference = float((expected - actual).abs().max())
    if difference != difference:  # NaN: an overflow on one side
        return float("inf")
    size = float(expected.abs().max())
    return difference / size if difference else 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a benchmark ran, in neutral words."""

    processors: int
    threads: int
    torch: str
    architecture: str

    def __str__(self) -> str:
        return (
            f"{self.architecture}, {self.processors} processors, {self.threads} PyTorch threads, "
            f"PyTorch {self.torch}"
        )


def machine() -> Machine:
    """The present one."""
    return Machine(
        processors=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        architecture=platform.machine(),
    )
