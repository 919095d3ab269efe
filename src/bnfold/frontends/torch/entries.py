"""What a module is run on: inputs as the user gives them, and the method that they enter by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.example_inputs import check_values
from bnfold.frontends.torch.held import is_a, is_iterator
from bnfold.frontends.torch.modes import in_mode
from bnfold.frontends.torch.noted import Notes, again
from bnfold.frontends.torch.opened_inputs import closed


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that enters by another method than forward, or in another mode than usual."""

    entry: str
    """Its dotted name: `forward_features`, `encoder.forward`; '' for forward."""
    inputs: Any
    mode: str = ""
    """What PyTorch says that it is doing; see `modes`."""


def as_entry(run: Any) -> Entry:
    """A run, which is its inputs alone where it is as usual."""
    return run if isinstance(run, Entry) else Entry("", run)


def with_inputs(run: Any, inputs: Any) -> Any:
    """The same run on other inputs."""
    return replace(run, inputs=inputs) if isinstance(run, Entry) else inputs


def method(model: nn.Module, entry: str) -> Callable[..., Any]:
    """The method of this dotted name; the model itself for ''."""
    attribute: Any = model
    for part in entry.split(".") if entry else ():
        attribute = getattr(attribute, part)
    called: Callable[..., Any] = attribute
    return called


def takes_numbers(model: nn.Module, entry: Entry) -> bool:
    """Whether numbers are among the inputs, or what may hold or draw some, or are what a parameter
    is by default."""
    if not all(isinstance(leaf, _NO_NUMBERS) for leaf in pytree.tree_leaves(entry.inputs)):
        return True
    try:
        parameters = inspect.signature(method(model, entry.entry or "forward")).parameters
    except (TypeError, ValueError):  # code that Python cannot look into
        return False
    return any(_is_number(parameter.default) for parameter in parameters.values())


_NO_NUMBERS = (Tensor, bool, str, type(None), type, nn.Module)
_NO_NUMBERS += (torch.dtype, torch.device, torch.layout, torch.memory_format)  # type: ignore[assignment]


def _is_number(value: Any) -> bool:
    return is_a(value, (int, float)) and not is_a(value, bool)


def split_inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as the user gives them.

    A tensor, a tuple or list of positional arguments, a dict of keywords, or the pair of both:
    `((x, y), {"mask": m})`. Raises ExampleInputError for tensors without values.
    """
    check_values(inputs)
    if isinstance(inputs, tuple) and list(map(type, inputs)) == [tuple, dict]:
        args, keywords = inputs
        return args, dict(keywords)
    if isinstance(inputs, dict):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def call(model: nn.Module, run: Any) -> None:
    """Run a module as it is run for a recording, on inputs of its own."""
    entry = as_entry(run)
    with own_containers(closed(split_inputs(_fresh(entry.inputs)))) as (args, kwargs):
        result_of(method(model, entry.entry), args, kwargs, mode=entry.mode)


@contextmanager
def own_containers(inputs: Any) -> Iterator[Any]:
    """The same tensors in lists and tables of their own, and iterators that start where these do.

    A run may fill a cache that the caller hands it, or take a batch apart. Other objects stay the
    very ones, which code may compare: what they hold is put back, as is where a generator of random
    numbers stands.
    """
    notes = Notes()
    notes.note(*(leaf for leaf in pytree.tree_leaves(inputs) if not isinstance(leaf, Tensor)))
    with notes.restoring():
        yield pytree.tree_map(_from_its_start, inputs)


def _from_its_start(leaf: Any) -> Any:
    return again(leaf) if is_iterator(leaf) else leaf


def result_of(
    called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, mode: str = ""
) -> Any:
    """What a call in this mode returns; all that it yields, where it does that.

    Raises what it raises; ProgramEndedError where it would end the program.
    """
    try:
        with in_mode(mode):
            result = called(*args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result
    except SystemExit as error:
        raise ProgramEndedError(f"it called sys.exit({error})") from error


class ProgramEndedError(RuntimeError):
    """The model wanted the program to end, which is not for a fold to do."""


def _fresh(tree: Any) -> Any:
    """The same inputs in memory of their own, which a run may write to."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), tree)
