"""The calls of a proof: the original and the folded model are both run on them, one by one.

    the example inputs                 as the user gave them
    other values of the same shapes    in the usual memory layout, where the model takes that; of an
                                       exported program with open sizes, of other sizes
    the same for each of `also`, and for each method that is an entry
    further ones                       of each size and layout on which the code goes another way,
                                       and until what a run leaves for the next comes again

The calls follow each other on one copy of the model, so what a call leaves behind shows in the
next. Where no call leaves anything, the original is run itself, as a copy may be another model: one
that is told by `id()`, or that leaves out what a pickle should not hold. Compared is all that comes
out: what is returned, tensors, numbers and texts, what was written to the inputs, and tensors that
were put into lists and tables among these. What the code asks of PyTorch on the way is heard as
well, see `function_calls`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import ExampleInputError
from bnfold.frontends.torch.copies import borrowed, deep_copy, lent, throwaway
from bnfold.frontends.torch.entries import method, own_containers, result_of
from bnfold.frontends.torch.example_inputs import not_taken
from bnfold.frontends.torch.function_calls import Heard, listening
from bnfold.frontends.torch.lending import loose_tensors
from bnfold.frontends.torch.opened_inputs import closed
from bnfold.frontends.torch.restorable import Restorable
from bnfold.frontends.torch.run_values import to_array
from bnfold.verify.runner import Output


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of the model, or of a method."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entry: str = ""
    """Dotted name of the method; '' for the model itself."""
    mode: str = ""
    """What PyTorch says that it is doing; see `modes`."""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if _is_tensor(leaf)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Call:
        """The same call on other tensors."""
        leaves, tree = pytree.tree_flatten((self.args, self.kwargs))
        given = iter(tensors)
        args, kwargs = pytree.tree_unflatten(
            [next(given) if _is_tensor(leaf) else leaf for leaf in leaves], tree
        )
        return Call(args, kwargs, self.entry, self.mode)


class CallFailedError(Exception):
    """The model raised in one of the calls."""

    def __init__(self, number: int, cause: Exception) -> None:
        super().__init__(number, cause)
        self.number = number
        self.cause = cause


class ModelCalls(nn.Module):
    """A model and its calls, as one module: it takes the tensors of all calls."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[Call],
        *,
        writes: bool = False,
        surroundings: Restorable | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.calls = list(calls)
        self.writes = writes
        """Whether a run is known to change a parameter or buffer."""
        self.surroundings = surroundings
        """What its code keeps elsewhere, put back after each run."""
        self.training = model.training
        self.heard: Heard | None = None
        """What the code asked in the last run that listened; None where nobody could."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of all calls."""
        return tuple(tensor for call in self.calls for tensor in call.tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelCalls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of a program's trees
            return self.of(deep_copy(self.model, memo))

    def of(self, model: nn.Module, calls: Sequence[Call] | None = None) -> ModelCalls:
        """The same of another model, or other calls."""
        return ModelCalls(
            model,
            self.calls if calls is None else calls,
            writes=self.writes,
            surroundings=self.surroundings,
        )

    def forward(self, *tensors: Tensor) -> dict[str, Any]:
        """What comes out, by name. The model is left as it was. Raises CallFailedError."""
        with self._running(borrowed) as model:
            return self._call_all(model, tensors)

    @contextmanager
    def _running(self, take: Callable[..., Any]) -> Iterator[nn.Module]:
        with torch.no_grad(), self._alone(), take(self.model, writes=self.writes) as model:
            yield model

    def _call_all(self, model: nn.Module, tensors: Sequence[Tensor]) -> dict[str, Any]:
        given = iter(tensors)
        named: dict[str, Any] = {}
        for number, call in enumerate(self.calls):
            own = [next(given).detach().clone() for _ in call.tensors]
            fresh = call.with_tensors(own)
            try:
                called = method(model, call.entry)
                with own_containers(closed((fresh.args, fresh.kwargs))) as (args, kwargs):
                    result = result_of(called, args, kwargs, mode=call.mode)
                    named |= _named(number, result, own, (args, kwargs))
            except Exception as error:
                raise CallFailedError(number, error) from error
        return named

    def _alone(self) -> AbstractContextManager[None]:
        return self.surroundings.restoring() if self.surroundings is not None else nullcontext()

    def run(self, *, listens: bool = False, itself: bool = False) -> list[Output]:
        """What comes out, in NumPy's arrays; with `listens`, `heard` is what the code asked.

        What runs is a copy, or the model `itself`. Raises CallFailedError.
        """
        take = partial(lent, loose=loose_tensors(self.model) or ()) if itself else borrowed
        named = self._listened(take) if listens else None
        if named is None:
            with self._running(take) as model:
                named = self._call_all(model, self.tensors)
        return [
            Output(name, to_array(leaf), str(leaf.dtype).removeprefix("torch."))
            for name, leaf in named.items()
        ]

    def _listened(self, take: Callable[..., Any]) -> dict[str, Any] | None:
        """What comes out while somebody listens; None where the program cannot be listened to."""
        self.heard = None
        with self._running(take) as model, listening(model) as heard:
            try:
                named = self._call_all(model, self.tensors)
            except CallFailedError:  # it may take no listener, as compiled code may not
                return None
        self.heard = heard
        return named


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


# ------------------------------------------------------------------- what comes out


def _named(
    number: int, result: Any, inputs: Sequence[Tensor], containers: Any
) -> dict[str, Tensor]:
    run = f"run {number + 1}: " if number else ""
    named = {}
    for path, leaf in _leaves(result):
        name = pytree.keystr(path).strip("[]'\"") or "output"
        named[f"{run}output {name}" if name.isdigit() else f"{run}{name}"] = _as_tensor(leaf)
    for position, tensor in enumerate(inputs):
        named[f"{run}input {position} afterwards"] = _as_tensor(tensor)
    given = {*map(id, inputs)}
    for path, leaf in _leaves(containers):
        if isinstance(leaf, Tensor) and id(leaf) not in given:
            named[f"{run}input {pytree.keystr(path[1:])} afterwards"] = _as_tensor(leaf)
    return named


def _leaves(result: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves; of an object that PyTorch's trees do not know, what it holds."""
    for path, leaf in pytree.tree_leaves_with_path(result):
        if isinstance(leaf, Tensor | int | float | complex | str | type(None)):
            yield path, leaf
        elif isinstance(getattr(leaf, "__dict__", None), dict):
            held = {key: part for key, part in vars(leaf).items() if _is_tensor(part)}
            for further, part in pytree.tree_leaves_with_path(held):
                yield (*path, *further), part


def _as_tensor(leaf: Any) -> Tensor:
    """A tensor of its own memory; a text as the numbers of its letters."""
    if isinstance(leaf, Tensor):
        dense = leaf.detach()
        dense = dense.to_dense() if dense.layout is not torch.strided else dense
        dense = dense.dequantize() if dense.is_quantized else dense
        return dense.clone()
    if isinstance(leaf, str | type(None)):
        return torch.tensor(list((leaf or "").encode(errors="replace")), dtype=torch.uint8)
    if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
        return torch.tensor(float(leaf), dtype=torch.float64)
    # Most numbers in floating point were taken out of a tensor, and are as exact as that.
    kind = torch.float32 if isinstance(leaf, float) else None
    return torch.tensor(leaf, dtype=kind)


# ------------------------------------------------------------------- other values


def run_original(
    original: ModelCalls,
    shapes: Iterable[Shapes] = (),
    further: Sequence[Sequence[Call]] = (),
    *,
    listens: bool = False,
    itself: bool = False,
) -> tuple[ModelCalls, list[Output]]:
    """The given calls, each followed by one on other values, with what the model makes of them.

    Of other values it gets the first that it takes: `shapes` come first, new ones for tensors by
    their position. Then come those `further` ones that it takes, with other values, too. Raises
    ExampleInputError if it raises on the example inputs themselves.
    """
    model, given = original.model, original.calls
    more = [_drawn(calls, 1 + number) for number, calls in enumerate(further)]
    resized: Iterator[Vary] = (partial(_resized, chosen) for chosen in shapes)
    for vary in chain(resized, (_varied, _redrawn, _kept)):
        first = _with_others(given, vary)
        while True:
            calls = original.of(model, list(chain(first, *more)))
            try:
                return calls, calls.run(listens=listens, itself=itself)
            except CallFailedError as error:
                if error.number == 0:
                    raise failure(model, given, error) from error.cause
                if error.number < len(first):
                    break
                del more[_group(more, error.number - len(first))]
    # What it keeps of one call lets it take no other.
    try:
        return original, original.run(listens=listens, itself=itself)
    except CallFailedError as error:
        raise failure(model, given, error) from error.cause


def failure(model: nn.Module, given: Sequence[Call], error: CallFailedError) -> ExampleInputError:
    """What to raise where one of the given calls raised."""
    call = given[error.number]
    called = method(model, call.entry)
    return not_taken(type(model).__name__, error.cause, (call.args, call.kwargs), called)


Shapes = Mapping[int, tuple[int, ...]]
Vary = Callable[[Tensor, int, torch.Generator], Tensor]
"""Other values for a tensor, given its position."""


def _drawn(calls: Sequence[Call], seed: int) -> list[Call]:
    """The same calls on other values."""
    draw = torch.Generator().manual_seed(seed)
    return [
        call.with_tensors([_redrawn(tensor, place, draw) for place, tensor in enumerate(own)])
        for call, own in ((call, call.tensors) for call in calls)
    ]


def _group(groups: Sequence[Sequence[Call]], number: int) -> int:
    """Which of the groups the call with this number is in."""
    ends = accumulate(map(len, groups))
    return next(place for place, end in enumerate(ends) if number < end)


def _with_others(given: Sequence[Call], vary: Vary) -> list[Call]:
    calls = []
    for number, call in enumerate(given):
        generator = torch.Generator().manual_seed(number)
        others = [vary(tensor, position, generator) for position, tensor in enumerate(call.tensors)]
        calls += [call, call.with_tensors(others)]
    return calls


def _resized(shapes: Shapes, tensor: Tensor, position: int, draw: torch.Generator) -> Tensor:
    """Other numbers in another shape: the given ones over and over, or as many of them."""
    shape = shapes.get(position)
    if shape is None or shape == tensor.shape:
        return _redrawn(tensor, position, draw)
    grown = tensor
    for axis, length in enumerate(shape):
        grown = grown.index_select(axis, torch.arange(length) % tensor.shape[axis])
    return _redrawn(grown, position, draw)


def _varied(tensor: Tensor, position: int, draw: torch.Generator) -> Tensor:
    """Other numbers, whole ones too, in the usual layout."""
    if not tensor.is_floating_point():
        return tensor.flip(0) if tensor.ndim else tensor
    drawn = _redrawn(tensor, position, draw)
    return drawn.contiguous() if drawn.layout is torch.strided else drawn


def _redrawn(tensor: Tensor, position: int, draw: torch.Generator) -> Tensor:
    """Normal numbers of the size of the given ones; whole numbers may be indices and stay."""
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return tensor
    values = to_array(tensor).astype(np.float64)
    finite = values[np.isfinite(values)]
    size = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    drawn = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * (size or 1.0)
    if finite.size and finite.min() >= 0 and size:
        drawn = drawn.abs()
    return torch.empty_like(tensor).copy_(drawn)


def shaken(original: ModelCalls, seed: int) -> ModelCalls:
    """The same calls on inputs moved by a thousandth; the weights are, where no input can be."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        factor = (1 + _SHAKE * noise).to(tensor.device)
        return torch.empty_like(tensor).copy_(tensor.detach() * factor)

    model = original.model
    if not any(tensor.is_floating_point() for tensor in original.tensors):
        model = throwaway(model, moved) or model
    calls = [call.with_tensors([*map(moved, call.tensors)]) for call in original.calls]
    return original.of(model, calls)


_SHAKE = 1e-3


def _kept(tensor: Tensor, position: int, draw: torch.Generator) -> Tensor:
    return tensor
