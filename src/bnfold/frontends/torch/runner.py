"""Run modules and exported programs for a verification, in their own dtypes and in float64.

What is run is a copy, so that a run leaves nothing in the model itself. In float64 everything is:
the model is copied to float64, and where its code asks for another floating-point dtype by name
(`.float()`, `torch.zeros(..., dtype=torch.half)`, autocast) or makes a tensor of one, it gets
float64 as well. Tensors inside are known by the module and its call ("layer1.0.conv1", "relu#1"
for the second call), in programs by the node.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import re
import warnings
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
from bnfold.verify.inputs import other_size
from bnfold.verify.runner import (
    Array,
    Evaluation,
    InputSpec,
    NotExactError,
    NotRunnableError,
    Output,
    Watch,
)
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
    other_shapes: Sequence[tuple[int, ...]] | None = None
    may_have_state: bool = True
    storage_dtype: str = ""

    @property
    def kind(self) -> str:
        """See `Runner`."""
        return "module" if isinstance(self.model, nn.Module) else "program"

    def is_same_as(self, other: object) -> bool:
        """Whether two programs are the same code with the same tensors."""
        if not isinstance(other, TorchRunner):
            return False
        one, two = self.model, other.model
        if isinstance(one, nn.Module) or isinstance(two, nn.Module):
            return False
        if str(one.graph) != str(two.graph) or one.state_dict.keys() != two.state_dict.keys():
            return False
        pairs = [(tensor, two.state_dict[name]) for name, tensor in one.state_dict.items()]
        pairs += [(c, two.constants.get(name)) for name, c in one.constants.items()]
        return all(a is b or _is_same(a, b) for a, b in pairs)

    @contextmanager
    def own(self) -> Iterator[Evaluation]:
        """A copy as it is."""
        yield _Own(self)

    @contextmanager
    def reordered(self) -> Iterator[Evaluation]:
        """PyTorch is not told another order. Raises NotRunnableError."""
        raise NotRunnableError("PyTorch sums in one order")
        yield

    @contextmanager
    def exact(self) -> Iterator[Evaluation]:
        """A copy in float64. Raises NotExactError."""
        if isinstance(self.model, nn.Module):
            yield _ExactModule(self.model, self)
        else:
            yield _ExactProgram(self.model, self)

    def callable_copy(self) -> nn.Module:
        """What can be called, apart from the model; the model itself where it cannot be copied."""
        model = self.model if isinstance(self.model, nn.Module) else self.model.module()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of its own trees
                return copy.deepcopy(model)
        except Exception:  # whatever the model's own copying raises
            return model

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
        made = _runner(model, (tuple(args), dict(kwargs)), name)
    else:
        drawn = program._user_inputs(model)
        made = _runner(model, (tuple(drawn.values()), {}), name, given=False)
    made.other_shapes = _other_shapes(model, [spec.shape for spec in made.specs])
    return made


def _other_shapes(
    model: ExportedProgram, shapes: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]] | None:
    """Shapes with other sizes where the program leaves them open; None where it leaves none."""
    names = {s.arg.name for s in model.graph_signature.input_specs if s.kind is _USER}
    values = [n.meta.get("val") for n in model.graph.nodes if n.op == "placeholder"]
    wanted = [n.name in names for n in model.graph.nodes if n.op == "placeholder"]
    tensors = [v for v, w in zip(values, wanted, strict=True) if w and isinstance(v, Tensor)]
    if len(tensors) != len(shapes):
        return None
    sizes: dict[Any, int] = {}
    for tensor, shape in zip(tensors, shapes, strict=True):
        for axis, (size, own) in enumerate(zip(tensor.shape, shape, strict=True)):
            expression = _expression(size)
            if getattr(expression, "is_symbol", False):
                within = model.range_constraints.get(expression)
                other = other_size(own, axis)
                fits = within is None or within.lower <= other <= within.upper
                sizes.setdefault(expression, other if fits else own)
    others = []
    for tensor in tensors:
        expressions = [_expression(size) for size in tensor.shape]
        if any(not e.free_symbols <= sizes.keys() for e in expressions if not isinstance(e, int)):
            return None
        others.append(tuple(e if isinstance(e, int) else int(e.subs(sizes)) for e in expressions))
    return others if others != list(shapes) else None


def _expression(size: Any) -> Any:
    """A number, or what it is computed from."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


_USER = InputKind.USER_INPUT


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


class _Own:
    """A copy of the model as it is."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner
        self.model = runner.callable_copy()
        self.pristine: list[Tensor] | None = None
        """The weights as they were before a draw moved them."""
        self.draw: int | None = None

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        args, kwargs = self.runner.arguments(inputs)
        self._set_draw(draw)
        with _seeded():
            return _outputs(self.model(*args, **kwargs))

    @torch.no_grad()
    def _set_draw(self, draw: int | None) -> None:
        if draw == self.draw:
            return
        if self.pristine is None:
            self.model = copy.deepcopy(self.model)
            self.pristine = [tensor.clone() for tensor in _tensors(self.model)]
        for own, tensor in zip(self.pristine, _tensors(self.model), strict=True):
            tensor.copy_(own)
            if draw is not None:
                _move(tensor, torch.Generator().manual_seed(draw))
        self.draw = draw


class _ExactModule:
    """A copy in float64 that is hooked for the time of a run."""

    def __init__(self, model: nn.Module, runner: TorchRunner) -> None:
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
            with _seeded(), _hooked(self.model, watch), _wide():
                return _outputs(self.model(*args, **kwargs))
        except Exception as error:
            raise NotExactError(f"{self.runner.name} does not run in float64 ({error})") from error

    @torch.no_grad()
    def _set_draw(self, draw: int | None) -> None:
        if draw == self.draw:
            return
        generator = None if draw is None else torch.Generator().manual_seed(draw)
        for own, wide in zip(_tensors(self.original), _tensors(self.model), strict=True):
            if generator is None:
                wide.copy_(own)
            else:
                _round_again(own, wide, generator)
        self.draw = draw


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
        self.written: set[str] = set()

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        tensors = dict(self.tensors)
        if draw is not None:
            generator = torch.Generator().manual_seed(draw)
            for name, own in self.own.items():
                if own.is_floating_point() and name not in self.written:
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
        made = list(
            zip(pytree.tree_leaves(result), self.program.graph_signature.output_specs, strict=True)
        )
        self._keep({spec.target: leaf for leaf, spec in made if spec.kind in _WRITTEN})
        return _outputs([leaf for leaf, spec in made if spec.kind is OutputKind.USER_OUTPUT])

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
def _seeded() -> Iterator[None]:
    """The same randomness for every run, if there is any."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


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


def _move(tensor: Tensor, generator: torch.Generator) -> None:
    """Half of the numbers become one of their neighbours; 0 stays, as rounding leaves it."""
    step = torch.randint(-1, 3, tensor.shape, generator=generator).to(tensor.device)
    ends = torch.where(step == 1, torch.inf, -torch.inf).to(tensor.dtype)
    moves = (step.abs() == 1) & (tensor != 0)  # down, stay, up, stay
    tensor.copy_(torch.where(moves, torch.nextafter(tensor, ends), tensor))


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


def _is_same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype:
        return False
    return torch.equal(a, b)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _outputs(result: Any) -> list[Output]:
    """Every tensor, number, text and None that a model returns, however they are nested."""
    return [
        Output(name or "output", *_content(leaf))
        for name, leaf in _leaves("", result)
        if isinstance(leaf, Tensor | np.ndarray | np.generic | bool | int | float | complex | str)
        or leaf is None
    ]


_KEYS = re.compile(r"[^\[\]'\".]+")
"""The parts of "['logits'][0]": how PyTorch writes the way to a leaf."""


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in pytree.tree_leaves_with_path(value):
        key = ".".join(_KEYS.findall(pytree.keystr(path)))
        key = f"{name}{'.' if name and key else ''}{key}"
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for entry in dataclasses.fields(leaf):
                inner = f"{key}.{entry.name}" if key else entry.name
                yield from _leaves(inner, getattr(leaf, entry.name, None))
        else:
            yield (f"output {key}" if key.isdigit() else key), leaf


def _content(leaf: Any) -> tuple[Array, str]:
    """As an array, and the name of its dtype."""
    if isinstance(leaf, Tensor):
        plain = leaf.to_dense() if leaf.layout != torch.strided else leaf
        return to_array(plain), _dtype(leaf)
    if leaf is None or isinstance(leaf, str):
        return np.asarray(leaf, dtype=object), type(leaf).__name__
    array = np.asarray(leaf)
    return array, "float32" if isinstance(leaf, float) else str(array.dtype)


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
