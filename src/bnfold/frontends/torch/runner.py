"""Run modules and exported programs for a verification, in their own dtypes and in float64.

In float64 everything is: the model is copied to float64, and where its code asks for another
floating-point dtype by name (`.float()`, `torch.zeros(..., dtype=torch.half)`, autocast), it gets
float64 as well. Tensors inside are known by the module and its call ("layer1.0.conv1", "relu#1"
for the second call), in programs by the node.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.core.plan import Plan
from bnfold.core.stored import Storage, Stored
from bnfold.errors import BnfoldError, ExampleInputError
from bnfold.frontends.torch import fold, program
from bnfold.frontends.torch.lift import Lifted, lift
from bnfold.frontends.torch.read import read_module, split_inputs
from bnfold.frontends.torch.recording import Recording
from bnfold.verify.runner import Array, Evaluation, InputSpec, NotExactError, Output, Watch
from bnfold.verify.verdict import unit

_CLIPS = ("auto", "always", "never")


@dataclass(slots=True)
class TorchRunner:
    """A module or program; see `verify.runner.Runner`."""

    model: nn.Module | ExportedProgram
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    """Example inputs, positional and by keyword."""
    name: str
    specs: Sequence[InputSpec] = ()
    runtimes: Mapping[str, str] = field(default_factory=lambda: {"torch": torch.__version__})
    notes: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """See `Runner`."""
        return "module" if isinstance(self.model, nn.Module) else "program"

    @contextmanager
    def own(self) -> Iterator[Evaluation]:
        """As it is."""
        model = self.model
        call: Callable[..., Any] = model if isinstance(model, nn.Module) else model.module()
        yield _Own(call, self)

    @contextmanager
    def exact(self) -> Iterator[Evaluation]:
        """A copy in float64. Raises NotExactError."""
        with _float64_by_default():
            if isinstance(self.model, nn.Module):
                yield _ExactModule(self.model, self)
            else:
                yield _ExactProgram(self.model, self)

    def storages(self) -> Sequence[Mapping[str, Stored]]:
        """What `fold` would do, under each clip mode; none where it refuses the model."""
        found = []
        try:
            if isinstance(self.model, nn.Module):
                args, kwargs = self.inputs
                recording = read_module(self.model, [kwargs if kwargs and not args else args])
            else:
                recording = program.read_program(self.model, program.lifted_tensors(self.model))
            lifted = lift(recording)
            for clip in _CLIPS:
                plan, _ = fold.decide(lifted, clip)  # type: ignore[arg-type]
                found.append(storage(recording, lifted, plan))
        except BnfoldError:
            return found
        return found

    def arguments(self, arrays: Sequence[Array], like: torch.dtype | None = None) -> Any:
        """Positional and keyword arguments with their tensors replaced by these arrays."""
        leaves, tree = pytree.tree_flatten(self.inputs)
        fresh = iter(arrays)
        made = [
            _tensor(next(fresh), leaf, like) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        return pytree.tree_unflatten(made, tree)


def module_runner(
    model: nn.Module, inputs: Any, name: str, like: Sequence[InputSpec] | None = None
) -> TorchRunner:
    """A runner of a module; example inputs are as for `bnfold.fold`, or look like others."""
    if inputs is not None:
        return _runner(model, split_inputs(inputs), name)
    if like is None:
        raise ExampleInputError(name, None)
    made = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in like)
    return _runner(model, (made, {}), name, given=False)


def program_runner(model: ExportedProgram, inputs: Any, name: str) -> TorchRunner:
    """A runner of a program, on its own example inputs unless others are given."""
    if inputs is not None:
        return _runner(model, split_inputs(inputs), name)
    if model.example_inputs is not None:
        args, kwargs = model.example_inputs
        return _runner(model, (tuple(args), dict(kwargs)), name)
    made = program._user_inputs(model)
    return _runner(model, (tuple(made.values()), {}), name, given=False)


def call_runner(
    model: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> TorchRunner:
    """A runner of either, on these arguments."""
    return _runner(model, (args, kwargs), name)


def _runner(
    model: nn.Module | ExportedProgram,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    name: str,
    *,
    given: bool = True,
) -> TorchRunner:
    specs = []
    for path, leaf in pytree.tree_leaves_with_path(inputs):
        if isinstance(leaf, Tensor):
            key = pytree.keystr(path[1:]).strip("[]'\"")
            specs.append(
                InputSpec(
                    key if not key.isdigit() else f"input {key}",
                    tuple(leaf.shape),
                    _dtype(leaf),
                    to_array(leaf) if given else None,
                )
            )
    return TorchRunner(model, inputs, name, tuple(specs))


# ------------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True)
class _Own:
    """The model as it is."""

    call: Callable[..., Any]
    runner: TorchRunner

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        args, kwargs = self.runner.arguments(inputs)
        with _seeded():
            return _outputs(self.call(*args, **kwargs))


class _ExactModule:
    """A copy in float64 that is hooked for the time of a run."""

    def __init__(self, model: nn.Module, runner: TorchRunner) -> None:
        self.runner = runner
        self.original = model
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
            with _seeded(), self._rounded(draw), _hooked(self.model, watch), _wide():
                return _outputs(self.model(*args, **kwargs))
        except Exception as error:
            raise NotExactError(f"{self.runner.name} does not run in float64 ({error})") from error

    @contextmanager
    def _rounded(self, draw: int | None) -> Iterator[None]:
        if draw is None:
            yield
            return
        pairs = list(zip(_tensors(self.original), _tensors(self.model), strict=True))
        generator = torch.Generator().manual_seed(draw)
        try:
            for own, wide in pairs:
                _round_again(own, wide, generator)
            yield
        finally:
            for own, wide in pairs:
                wide.copy_(own)


class _ExactProgram:
    """A program's graph, interpreted with its tensors in float64."""

    def __init__(self, model: ExportedProgram, runner: TorchRunner) -> None:
        self.program = model
        self.runner = runner
        self.own = dict(program.lifted_tensors(model))
        for spec in model.graph_signature.input_specs:
            if spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
                self.own[spec.arg.name] = model.constants[spec.target]
        self.tensors = {name: _widened(tensor) for name, tensor in self.own.items()}

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        tensors = dict(self.tensors)
        if draw is not None:
            generator = torch.Generator().manual_seed(draw)
            for name, own in self.own.items():
                if own.is_floating_point():
                    tensors[name] = tensors[name].clone()
                    _round_again(own, tensors[name], generator)
        leaves = pytree.tree_leaves(self.runner.arguments(inputs, torch.float64))
        specs = self.program.graph_signature.input_specs
        names = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
        try:
            tensors.update(zip(names, leaves, strict=True))
            with _seeded(), _wide():
                result = _Nodes(self.program, tensors, watch).run()
        except Exception as error:
            raise NotExactError(f"{self.runner.name} does not run in float64 ({error})") from error
        kept = zip(
            pytree.tree_leaves(result), self.program.graph_signature.output_specs, strict=True
        )
        return _outputs([leaf for leaf, spec in kept if spec.kind is OutputKind.USER_OUTPUT])


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
    """Whoever asks for a floating-point dtype by name gets float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "_assert_tensor_metadata" in str(func):
            return None
        args = tuple(_wide_dtype(argument) for argument in args)
        kwargs = {key: _wide_dtype(value) for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _wide() -> Any:
    return _Wide()  # type: ignore[no-untyped-call]


def _wide_dtype(argument: Any) -> Any:
    is_dtype = isinstance(argument, torch.dtype) and argument.is_floating_point
    return torch.float64 if is_dtype else argument


@contextmanager
def _float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _seeded() -> Iterator[None]:
    """The same randomness for every run, if there is any."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


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


# ------------------------------------------------------------------- tensors


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers in floating point; in a copy, the same in the same order."""
    return [
        tensor.detach()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point()
    ]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _round_again(own: Tensor, wide: Tensor, generator: torch.Generator) -> None:
    """wide = own * (1 + d), |d| <= u."""
    if own.numel() < 1:
        return
    drawn = torch.rand(own.shape, generator=generator, dtype=torch.float32)
    factors = drawn.mul_(2.0).sub_(1.0).double().mul_(unit(_dtype(own))).add_(1.0)
    wide.copy_(own)
    wide.mul_(factors.to(wide.device))


def to_array(tensor: Tensor) -> Array:
    """The content on the CPU; bfloat16 as float32."""
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.float()
    array: Array = plain.resolve_conj().resolve_neg().contiguous().numpy()
    return array


def _tensor(array: Array, leaf: Tensor, like: torch.dtype | None) -> Tensor:
    dtype = like if like is not None and leaf.is_floating_point() else leaf.dtype
    return torch.from_numpy(np.array(array)).to(device=leaf.device, dtype=dtype)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _outputs(result: Any) -> list[Output]:
    found = []
    for path, leaf in pytree.tree_leaves_with_path(result):
        if isinstance(leaf, Tensor):
            name = pytree.keystr(path).strip("[]'\"") or "output"
            name = f"output {name}" if name.isdigit() else name
            found.append(Output(name, to_array(leaf), _dtype(leaf)))
    return found


# ------------------------------------------------------------------- storage


def storage(recording: Recording, lifted: Lifted, plan: Plan) -> dict[str, Stored]:
    """How a plan stores what modules return, or nodes make, by the key that a watch gets."""
    stored = Storage(plan)
    found = {}
    for calls in recording.calls.values():
        for number, call in enumerate(calls):
            tensor = lifted.tensors.get(call.outputs[0].number) if len(call.outputs) == 1 else None
            if tensor is not None:
                found[f"{call.name}#{number}" if number else call.name] = stored.of(tensor)
    for root in recording.roots:
        for step in root.items:
            node = getattr(step, "node", None)
            made = [event.outputs for event in getattr(step, "items", ()) if event.outputs]
            if node is None or not made or made[-1][0] is None:
                continue
            tensor = lifted.tensors.get(made[-1][0].number)
            if tensor is not None:
                found[node.name] = stored.of(tensor)
    return found
