"""Run modules and exported programs for a verification, in their own dtypes and in float64.

What is run is a copy, so that a run leaves nothing in the model itself.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.core.rescaling import Rescalings
from bnfold.errors import BnfoldError, ExampleInputError
from bnfold.frontends.torch.entries import split_inputs
from bnfold.frontends.torch.example_inputs import not_taken
from bnfold.frontends.torch.opened_inputs import closed, opened
from bnfold.frontends.torch.program_sizes import open_sizes
from bnfold.frontends.torch.program_work import rescalings_of_program
from bnfold.frontends.torch.read_program import user_inputs
from bnfold.frontends.torch.rescalings import rescalings_of_module
from bnfold.frontends.torch.run_exact import ExactModule, ExactProgram
from bnfold.frontends.torch.run_values import (
    dtype_name,
    is_same,
    move,
    seeded,
    tensors,
    to_array,
    to_outputs,
    to_tensor,
)
from bnfold.frontends.torch.runnable import runnable
from bnfold.verify.inputs import OTHER_SIZES
from bnfold.verify.runner import Array, Evaluation, InputSpec, Output, Rounded, Watch
from bnfold.verify.verdict import unit


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
    other_shapes: Sequence[Sequence[tuple[int, ...]]] = ()
    may_have_state: bool = True

    @property
    def kind(self) -> str:
        """See `Runner`."""
        return "module" if isinstance(self.model, nn.Module) else "program"

    def rounded(self, original: object) -> Rounded | None:
        """None: a module computes with its parameters as they are."""
        return None

    def is_same_as(self, other: object) -> bool:
        """Whether two programs are the same code with the same tensors."""
        if not isinstance(other, TorchRunner):
            return False
        first, second = self.model, other.model
        if isinstance(first, nn.Module) or isinstance(second, nn.Module):
            return False
        if (
            str(first.graph) != str(second.graph)
            or first.state_dict.keys() != second.state_dict.keys()
        ):
            return False
        pairs = [(tensor, second.state_dict[name]) for name, tensor in first.state_dict.items()]
        pairs += [(c, second.constants.get(name)) for name, c in first.constants.items()]
        return all(a is b or is_same(a, b) for a, b in pairs)

    def not_taken(self, error: Exception | None) -> ExampleInputError:
        """With what was given, and what to type."""
        called = runnable(self.model)
        return not_taken(self.name, error, self.inputs, called)

    def own(self) -> Evaluation:
        """A copy as it is."""
        return _Own(self)

    def reordered(self) -> None:
        """PyTorch is not told another order."""

    def exact(self) -> Evaluation:
        """A copy in float64. Raises NotExactError."""
        if isinstance(self.model, nn.Module):
            return ExactModule(self.model, self)
        return ExactProgram(self.model, self)

    def narrowest(self, inputs: Sequence[Array]) -> str:
        """As a run of a copy shows: what autocast, or a `.half()` in its code, makes."""
        args, kwargs = self.arguments(inputs)
        dtypes = _Dtypes()  # type: ignore[no-untyped-call]
        with suppress(Exception), seeded(), torch.no_grad(), dtypes:
            self.callable_copy()(*args, **kwargs)
        return max(dtypes.seen, key=unit, default="")

    def callable_copy(self) -> nn.Module:
        """What can be called, apart from the model; the model itself where it cannot be copied."""
        model = runnable(self.model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of its own trees
                return copy.deepcopy(model)
        except Exception:  # whatever the model's own copying raises
            return model

    def rescalings(self, folded: object) -> Sequence[Rescalings]:
        """What `fold` would do, under each clip mode; none where it refuses the model."""
        rescalings: list[Rescalings] = []
        with suppress(BnfoldError):
            if isinstance(self.model, nn.Module):
                args, kwargs = self.inputs
                inputs = kwargs if kwargs and not args else args
                other = folded.model if isinstance(folded, TorchRunner) else None
                rescalings.extend(rescalings_of_module(self.model, inputs, other))
            else:
                rescalings.extend(rescalings_of_program(self.model))
        return rescalings

    def arguments(self, arrays: Sequence[Array], like: torch.dtype | None = None) -> Any:
        """Positional and keyword arguments with their tensors replaced by these arrays."""
        leaves, tree = pytree.tree_flatten(self.inputs)
        fresh = iter(arrays)
        made = [
            to_tensor(next(fresh), leaf, like) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        return closed(pytree.tree_unflatten(made, tree))


def module_runner(
    model: nn.Module, inputs: Any, name: str, like: Sequence[InputSpec] | None = None
) -> TorchRunner:
    """A runner of a module; example inputs are as for `bnfold.fold`, or look like others."""
    if inputs is not None:
        return _runner(model, split_inputs(opened(inputs)), name)
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
        drawn = user_inputs(model)
        made = _runner(model, (tuple(drawn.values()), {}), name, given=False)
    opened = open_sizes(model, [spec.shape for spec in made.specs])
    if opened is not None:
        others = [opened.shapes_with(_one(another)) for another in OTHER_SIZES]
        made.other_shapes = [sizes for sizes in others if sizes is not None]
    return made


def _one(another: Callable[[int, int], int]) -> Callable[[int, int], tuple[int]]:
    """The one size that is wanted for a symbol."""
    return lambda size, axis: (another(size, axis),)


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
                    dtype_name(leaf),
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
        with seeded():
            return to_outputs(self.model(*args, **kwargs))

    @torch.no_grad()
    def _set_draw(self, draw: int | None) -> None:
        if draw == self.draw:
            return
        if self.pristine is None:
            self.model = copy.deepcopy(self.model)
            self.pristine = [tensor.clone() for tensor in tensors(self.model)]
        for own, tensor in zip(self.pristine, tensors(self.model), strict=True):
            tensor.copy_(own)
            if draw is not None:
                move(tensor, torch.Generator().manual_seed(draw))
        self.draw = draw


class _Dtypes(TorchDispatchMode):  # type: ignore[misc]
    """Notes the floating-point dtypes that ops make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.seen.add(dtype_name(leaf))
        return result
