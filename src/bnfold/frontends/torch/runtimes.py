"""Run a module or a program for a measurement: eager, compiled, on CUDA, and as a CUDA graph.

The models that were given are left alone: what is run are copies, in the device, dtype and layout
of the setting. A batch of another size holds the rows of the example inputs, repeated.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from bnfold.bench.settings import CHANNELS_LAST, CONTIGUOUS, Setting, Wishes, check
from bnfold.bench.timing import Timed, on_clock
from bnfold.errors import ExampleInputError, TrainingModeError, UsageError
from bnfold.frontends.torch.entries import split_inputs
from bnfold.frontends.torch.example_inputs import not_taken
from bnfold.frontends.torch.opened_inputs import closed, opened
from bnfold.frontends.torch.runnable import runnable

EAGER = "eager"
COMPILE = "compile"
CUDA_GRAPH = "cuda graph"
RUNTIMES = (EAGER, COMPILE, CUDA_GRAPH)

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs."""


class TorchSubject:
    """Modules and programs that take the same inputs; see `bnfold.bench.settings.Subject`."""

    def __init__(
        self,
        models: Mapping[str, nn.Module | ExportedProgram],
        inputs: Any,
        *,
        runtimes: Sequence[str],
        wishes: Wishes,
    ) -> None:
        self.runtimes = tuple(runtimes)
        self.variants = tuple(models)
        self._models = dict(models)
        self._wishes = wishes
        _check(models, self.runtimes, wishes)
        self._inputs = _split(next(iter(models.values())), inputs)
        self.settings = wishes.settings(
            dtype=_dtype(self._inputs),
            layout=_layout(self._inputs),
            batch=_batch(self._inputs),
            threads=torch.get_num_threads(),
        )
        self._copies: dict[tuple[str, Setting], nn.Module] = {}

    @contextmanager
    def enter(self, setting: Setting) -> Iterator[None]:
        """PyTorch's threads are the process's; compiled code has their number in it."""
        before = torch.get_num_threads()
        torch.set_num_threads(setting.threads)
        on_cuda = setting.device.startswith("cuda")
        try:
            with torch.cuda.device(setting.device) if on_cuda else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)
            self._copies.clear()
            if COMPILE in self.runtimes:
                torch._dynamo.reset()

    def timed(self, variant: str, runtime: str, setting: Setting) -> Timed:
        """The variant as the runtime runs it."""
        key = (variant, setting)
        if key not in self._copies:
            self._copies[key] = _copy(self._models[variant], setting, self._wishes)
        model: Callable[..., Any] = self._copies[key]
        args, kwargs = closed(_placed(_resized(self._inputs, setting.batch), setting, self._wishes))
        if runtime == COMPILE:
            model = torch.compile(model, dynamic=False, options={"cpp.threads": setting.threads})
        call: Callable[[], None] = partial(_call, model, args, kwargs)
        if not setting.device.startswith("cuda"):
            return on_clock(call)
        if runtime == CUDA_GRAPH:
            call = captured(call)
        return on_events(call)

    def not_taken(self, variant: str, runtime: str, error: Exception) -> ExampleInputError | None:
        """Where nothing was asked for but to run the original on them."""
        if variant != self.variants[0] or runtime != EAGER:
            return None
        if self._wishes != Wishes(threads=self._wishes.threads):
            return None
        name, model = f"the {variant} model", self._models[variant]
        called = runnable(model)
        return not_taken(name, error, self._inputs, called)

    def describe(self) -> tuple[dict[str, str], dict[str, str]]:
        """The GPU, if one took part, and PyTorch."""
        versions = {"torch": str(torch.__version__)}
        on_cuda = {setting.device for setting in self.settings if setting.device != "cpu"}
        devices = {device: torch.cuda.get_device_name(device) for device in sorted(on_cuda)}
        if on_cuda:
            versions["CUDA"] = str(torch.version.cuda)
            versions["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        return devices, versions


def fold_with_torch_fx(model: Any) -> nn.Module:
    """PyTorch's own: symbolic tracing, then Conv -> BatchNorm and Linear -> BatchNorm pairs."""
    from torch.fx.experimental.optimization import fuse

    if not isinstance(model, nn.Module):
        raise UsageError(
            "torch.fx folds modules, and this is an exported program", "leave out torch.fx"
        )
    return fuse(model)


# -------------------------------------------------------------------- what can be run


def _check(
    models: Mapping[str, nn.Module | ExportedProgram], runtimes: Sequence[str], wishes: Wishes
) -> None:
    check(wishes, DTYPES)
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise UsageError(
                f"PyTorch has no runtime {runtime!r}", f"use some of {', '.join(RUNTIMES)}"
            )
    for name, model in models.items():
        if isinstance(model, nn.Module) and model.training:
            raise TrainingModeError(f"the {name} model")
    _check_device(wishes.device, runtimes)


def _check_device(device: str, runtimes: Sequence[str]) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {device!r} here", "use 'cpu', 'cuda' or 'cuda:1'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"PyTorch {torch.__version__} sees no CUDA device", "use device='cpu' (--device cpu)"
        )
    if kind == "cpu" and CUDA_GRAPH in runtimes:
        raise UsageError("a CUDA graph needs a CUDA device", "add device='cuda' (--device cuda)")


def _split(model: nn.Module | ExportedProgram, inputs: Any) -> Inputs:
    """The inputs as they are called with; a program brings its own."""
    if inputs is None and isinstance(model, ExportedProgram):
        args, kwargs = model.example_inputs or ((), {})
        if not args and not kwargs:
            raise UsageError(
                "the program carries no example inputs", "pass inputs=, or export it with them"
            )
        return tuple(args), dict(kwargs)
    if inputs is None:
        raise ExampleInputError(type(model).__name__, None)
    return split_inputs(opened(inputs))


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _dtype(inputs: Inputs) -> str:
    """That of the first input of floating point."""
    dtypes = [t.dtype for t in _tensors(inputs) if t.is_floating_point()]
    return str(dtypes[0] if dtypes else torch.float32).removeprefix("torch.")


def _batch(inputs: Inputs) -> int:
    """The length of the first axis of the first tensor."""
    return next((tensor.shape[0] for tensor in _tensors(inputs) if tensor.ndim), 1)


def _layout(inputs: Inputs) -> str:
    """That of the first image."""
    image = next((tensor for tensor in _tensors(inputs) if tensor.ndim == 4), None)
    if image is None or image.is_contiguous():
        return CONTIGUOUS
    is_last = image.is_contiguous(memory_format=torch.channels_last)
    return CHANNELS_LAST if is_last else CONTIGUOUS


# -------------------------------------------------------------------- making ready


def _copy(model: nn.Module | ExportedProgram, setting: Setting, wishes: Wishes) -> nn.Module:
    """The model in the device of the setting, and in the dtype and layout that were wished for."""
    # A program's module is made anew at each call, but shares its parameters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of its own trees
        own = copy.deepcopy(runnable(model))
    own = own.to(torch.device(setting.device))
    if wishes.dtypes is not None:
        own = own.to(DTYPES[setting.dtype])
    if wishes.layouts is not None:
        own = own.to(memory_format=_FORMATS[setting.layout])  # type: ignore[call-overload]
    return own


def _resized(inputs: Inputs, batch: int) -> Inputs:
    """The inputs with another number of rows: those there are, over and over."""
    own = _batch(inputs)
    if batch == own:
        return inputs
    rows = torch.arange(batch) % own

    def resize(tensor: Tensor) -> Tensor:
        # Only what has the batch along its first axis is indexed.
        is_batched = tensor.ndim > 0 and tensor.shape[0] == own
        return tensor[rows.to(tensor.device)] if is_batched else tensor

    resized: Inputs = _pytree.tree_map_only(Tensor, resize, inputs)
    return resized


def _placed(inputs: Inputs, setting: Setting, wishes: Wishes) -> Inputs:
    """The inputs like the model: in the device, and as wished for."""

    def place(tensor: Tensor) -> Tensor:
        placed = tensor.detach().to(setting.device)
        if wishes.dtypes is not None and placed.is_floating_point():
            placed = placed.to(DTYPES[setting.dtype])
        if wishes.layouts is not None and placed.ndim == 4:
            placed = placed.contiguous(memory_format=_FORMATS[setting.layout])
        return placed

    result: Inputs = _pytree.tree_map_only(Tensor, place, inputs)
    return result


@torch.inference_mode()
def _call(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model(*args, **kwargs)


# -------------------------------------------------------------------- CUDA


def on_events(call: Callable[[], object]) -> Timed:
    """Time a call by the GPU's own events: from when it begins there to when it has ended."""

    def timed() -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # nothing of an earlier call is under way
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # milliseconds

    return timed


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph that is replayed: the GPU's work without the processor's."""
    # https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: warm up on another stream.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay
