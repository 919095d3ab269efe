"""Run modules and exported programs in float64.

Everything is: the model is copied to float64, and where its code asks for another floating-point
dtype by name (`.float()`, `torch.zeros(..., dtype=torch.half)`, autocast) or makes a tensor of one,
it gets float64 as well. Tensors inside are known by the module and its call ("layer1.0.conv1",
"relu#1" for the second call), in programs by the node.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.frontends.torch.read_program import lifted_tensors
from bnfold.frontends.torch.run_values import (
    round_again,
    seeded,
    tensors,
    to_array,
    to_outputs,
    widened,
)
from bnfold.verify.runner import Array, NotExactError, Output, Watch


class Given(Protocol):
    """Whose inputs they are: the runner."""

    name: str

    def arguments(self, arrays: Sequence[Array], like: torch.dtype | None = None) -> Any:
        """Positional and keyword arguments with their tensors replaced by these arrays."""


class ExactModule:
    """A copy in float64 that is hooked for the time of a run."""

    def __init__(self, model: nn.Module, runner: Given) -> None:
        self.runner = runner
        self.original = model
        self.draw: int | None = None
        try:
            self.model = copy.deepcopy(model).double()
        except Exception as error:
            raise NotExactError(f"{runner.name} cannot be copied to float64 ({error})") from error

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        args, kwargs = self.runner.arguments(inputs, torch.float64)
        try:
            self._set_draw(draw)
            with seeded(), _hooked(self.model, watch), _wide():
                return to_outputs(self.model(*args, **kwargs))
        except Exception as error:
            raise NotExactError(f"{self.runner.name} does not run in float64 ({error})") from error

    @torch.no_grad()
    def _set_draw(self, draw: int | None) -> None:
        if draw == self.draw:
            return
        generator = None if draw is None else torch.Generator().manual_seed(draw)
        for own, wide in zip(tensors(self.original), tensors(self.model), strict=True):
            if generator is None:
                wide.copy_(own)
            else:
                round_again(own, wide, generator)
        self.draw = draw


class ExactProgram:
    """A program's graph, interpreted with its tensors in float64."""

    def __init__(self, model: ExportedProgram, runner: Given) -> None:
        self.program = model
        self.runner = runner
        self.own = dict(lifted_tensors(model))
        for spec in model.graph_signature.input_specs:
            if spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
                self.own[spec.arg.name] = model.constants[spec.target]
        self.tensors = {name: widened(tensor) for name, tensor in self.own.items()}
        self.written: set[str] = set()

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        made = dict(self.tensors)
        if draw is not None:
            generator = torch.Generator().manual_seed(draw)
            for name, own in self.own.items():
                if own.is_floating_point() and name not in self.written:
                    made[name] = made[name].clone()
                    round_again(own, made[name], generator)
        leaves = pytree.tree_leaves(self.runner.arguments(inputs, torch.float64))
        specs = self.program.graph_signature.input_specs
        names = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
        try:
            made.update(zip(names, leaves, strict=True))
            with seeded(), _wide():
                result = _Nodes(self.program, made, watch).run()
        except Exception as error:
            raise NotExactError(f"{self.runner.name} does not run in float64 ({error})") from error
        results = list(
            zip(pytree.tree_leaves(result), self.program.graph_signature.output_specs, strict=True)
        )
        self._keep({spec.target: leaf for leaf, spec in results if spec.kind in _WRITTEN})
        return to_outputs([leaf for leaf, spec in results if spec.kind is OutputKind.USER_OUTPUT])

    def _keep(self, written: dict[str | None, Any]) -> None:
        """What the program writes to its buffers shows in the next run."""
        for spec in self.program.graph_signature.input_specs:
            if spec.target is not None and spec.target in written:
                self.tensors[spec.arg.name] = written[spec.target]
                self.written.add(spec.arg.name)


_WRITTEN = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


class _Nodes(fx.Interpreter):
    """Runs the nodes of a program and shows what they make."""

    def __init__(
        self, model: ExportedProgram, tensors: dict[str, Any], watch: Watch | None
    ) -> None:
        super().__init__(model.graph_module)
        self.tensors = tensors
        self.watch = watch

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The model's own tensor, or an input."""
        return self.tensors[str(target)]

    def run_node(self, n: fx.Node) -> Any:
        """Each node is a call of its own."""
        result = super().run_node(n)
        if n.op == "call_function" and self.watch is not None:
            _show(self.watch, n.name, _opname(n.target), result)
        return result


class _Wide(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whoever asks for a floating-point dtype by name, or makes a tensor of one, gets float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "_assert_tensor_metadata" in str(func):
            return None
        args = tuple(_wide_dtype(argument) for argument in args)
        kwargs = {key: _wide_dtype(value) for key, value in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        if _is_narrow(result) and not any(_is_narrow(leaf) for leaf in pytree.tree_leaves(args)):
            return result.double()
        return result


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _wide() -> Any:
    return _Wide()  # type: ignore[no-untyped-call]


def _wide_dtype(argument: Any) -> Any:
    is_dtype = isinstance(argument, torch.dtype) and argument.is_floating_point
    return torch.float64 if is_dtype else argument


@contextmanager
def _hooked(model: nn.Module, watch: Watch | None) -> Iterator[None]:
    """The watch sees what each module returns; containers that only pass it on are left out."""
    if watch is None:
        yield
        return
    calls: dict[str, int] = {}

    def hook(name: str, kind: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, result: Any) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            _show(watch, f"{name}#{call}" if call else name, kind, result)

        return see

    handles = [
        module.register_forward_hook(hook(name, type(module).__name__))
        for name, module in model.named_modules()
        if name and type(module) is not nn.Sequential
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _show(watch: Watch, key: str, kind: str, result: Any) -> None:
    if isinstance(result, tuple | list) and result and kind in _FIRST_COUNTS:
        result = result[0]
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.is_sparse:
        return

    def gather(places: Any) -> Array:
        # Plain indexing waits for all of PyTorch's threads; this is less work than that.
        index = torch.from_numpy(places.reshape(-1)).to(result.device)
        picked = result.detach().reshape(-1).index_select(0, index)
        return to_array(picked.reshape(places.shape))

    watch(key, kind, tuple(result.shape), gather)


_FIRST_COUNTS = ("_native_batch_norm_legit_no_training", "native_batch_norm")
"""(output, mean, deviation) of which a network reads the first."""


def _opname(target: Any) -> str:
    return str(getattr(target, "_opname", getattr(target, "__name__", target)))
