"""What is said where a model does not take its example inputs: what was given, and what to type.

A module may take anything: numbers, texts, lists of tensors. So nothing is refused for what it is;
it is explained once the model has raised on it.

    given                            to type
    (1, 3, 224, 224), "1x3x224x224"  torch.randn(1, 3, 224, 224)
    an array                         torch.from_numpy(array)
    a DataLoader                     next(iter(loader))
    a batch: a list, a dict          what forward's signature takes of it
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from bnfold._text import shortened
from bnfold.errors import ExampleInputError
from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.opened_inputs import as_given

_MOST = 200
"""Characters of what was given."""
_AXES = range(1, 7)
"""How many numbers are taken for a shape."""


def not_taken(
    name: str, cause: BaseException | None, inputs: Any, called: Callable[..., Any]
) -> ExampleInputError:
    """What to raise for a model that raised `cause` on these inputs, as the user gave them.

    `called` is the model, or the method of it that was called.
    """
    has_tensors = bool(_tensors(_plain(inputs)))
    given = _plain(as_given(inputs))
    if cause is not None and has_tensors:
        is_entry = not isinstance(called, nn.Module)
        who = getattr(called, "__qualname__", name) if is_entry else name
        what = f"{who} raised {type(cause).__name__} on the example inputs ({_said(given)})"
        step = _ENTRY if is_entry else _step(called, cause, given)
        return ExampleInputError(name, cause, step, problem=f"{what}: {_text(cause)}")
    # What it does with something that is no tensor says less than that it is none.
    tells = cause is not None and not isinstance(cause, TypeError | AttributeError)
    detail = f" ({_line(cause)})" if tells else ""
    problem = _without_tensors(name, given) + detail
    return ExampleInputError(name, cause, _to_type(given), problem=problem)


def check_unread(program: ExportedProgram, inputs: Any) -> None:
    """Raise ExampleInputError for inputs that are none; a program brings its own, and is run on
    those."""
    given = _plain(inputs)
    if inputs is None or _tensors(given) or not pytree.tree_leaves(given):
        return
    takes = (s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT)
    if any(isinstance(spec.arg, TensorArgument) for spec in takes):
        raise ExampleInputError(
            "the program",
            None,
            "leave inputs out: a program brings the example inputs that it was exported with",
            problem=_without_tensors("the program", given),
        )


def check_values(inputs: Any) -> None:
    """Raise ExampleInputError for tensors without content, or whose content cannot be followed, and
    for what can be run on once."""
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, GeneratorType):
            raise _no_input(
                f"an example input is a Python generator ({leaf.__qualname__}), which can be"
                " neither copied nor put back after a run",
                "pass what it yields as a list",
            )
    for tensor in _tensors(inputs):
        if is_lazy(tensor):
            raise _no_input(
                "an example input is a parameter or buffer that is not initialised yet",
                "pass a tensor with values, such as inputs=torch.randn(1, 3, 224, 224)",
            )
        if tensor.is_nested or tensor.layout in _COMPRESSED:
            raise _no_input(
                "an example input is a nested tensor, or a sparse one in rows or columns",
                "pass a dense tensor, or fold the part of the model behind what makes it one",
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise _no_input(
                "the fold is called within torch.func (vmap, grad), where tensors have no values",
                "fold the model first, and hand the folded one to torch.func",
            )
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            shape = ", ".join(map(str, tensor.shape))
            kind = "on the meta device" if tensor.is_meta else "a fake tensor"
            raise _no_input(
                f"an example input ({_said(tensor)}) is {kind}, without values",
                f"pass inputs=torch.randn({shape}), or others with values",
            )
        if not tensor.numel():
            raise _no_input(
                f"an example input ({_said(tensor)}) has no elements",
                "pass inputs in which every axis has a length",
            )


_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _no_input(problem: str, step: str) -> ExampleInputError:
    return ExampleInputError("the model", None, step, problem=problem)


def _plain(inputs: Any) -> Any:
    """The pair of arguments and keywords as what it would be without the pair; ((x,), {}) is x."""
    if isinstance(inputs, tuple) and list(map(type, inputs)) == [tuple, dict]:
        args, kwargs = inputs
        if args and kwargs:
            return inputs
        inputs = args or kwargs
    if type(inputs) is tuple and len(inputs) == 1:
        return inputs[0]
    return inputs


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(given) if is_a(leaf, Tensor)]


def _text(cause: BaseException) -> str:
    """Without the list of all ways in which PyTorch's function could have been called."""
    return str(cause).partition(", but expected one of:")[0]


def _line(cause: BaseException | None) -> str:
    lines = str(cause).strip().splitlines() or [""]
    return shortened(f"{type(cause).__name__}: {lines[0].rstrip('.')}", 120)


def _without_tensors(name: str, given: Any) -> str:
    return f"{name} takes example tensors, and was given {_said(given)}"


# -------------------------------------------------------------------- what was given


def _said(given: Any) -> str:
    """What it is, in words."""
    if given is None:
        return "None"
    if _is_shape(given):
        return f"a shape, {_tuple(map(str, given))}"
    if isinstance(given, str):
        return f"a text, {shortened(repr(given), 60)}"
    if isinstance(given, bool | int | float | complex):
        return f"the number {given}"
    if isinstance(given, Tensor):
        return _dense(given, str(given.dtype).removeprefix("torch."), "tensor")
    if isinstance(given, np.ndarray):
        return _dense(given, str(given.dtype), "NumPy array")
    if isinstance(given, Mapping):
        kind = "" if type(given) is dict else f"{type(given).__name__} "
        held = ", ".join(f"{key!r}: {_said(part)}" for key, part in given.items())
        return f"{kind}{{{_cut(held)}}}"
    if isinstance(given, list | tuple):
        if _is_numbers(given) and not all(map(_is_shape, given)):
            return f"numbers, {shortened(repr(given), 60)}"
        held = ", ".join(map(_said, given))
        return f"[{_cut(held)}]" if isinstance(given, list) else f"({_cut(held)})"
    if isinstance(given, type):
        return f"the class {given.__qualname__}"
    return f"an object of {type(given).__qualname__}"


def _dense(given: Any, dtype: str, kind: str) -> str:
    return f"a {dtype} {kind} of {'x'.join(map(str, given.shape)) or 'no axis'}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _tuple(parts: Any) -> str:
    listed = list(parts)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _is_shape(given: Any) -> bool:
    return (
        isinstance(given, list | tuple)
        and len(given) in _AXES
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in given)
    )


def _is_numbers(given: Any) -> bool:
    """Whether these are lists of numbers in lists."""
    leaves = pytree.tree_leaves(given)
    return bool(leaves) and all(isinstance(leaf, int | float) for leaf in leaves)


def _has_fractions(given: Any) -> bool:
    """Whether these are numbers, and no lengths."""
    return _is_numbers(given) and any(isinstance(leaf, float) for leaf in pytree.tree_leaves(given))


# -------------------------------------------------------------------- what to type


def _to_type(given: Any) -> str:
    """The inputs as they should have been given."""
    code = _code(given)
    if code is not None:
        return f"pass inputs={code}"
    return "pass tensors of the shapes that it takes, such as inputs=torch.randn(1, 3, 224, 224)"


def _code(given: Any) -> str | None:
    """Python that makes tensors of it; None where that is not known."""
    if isinstance(given, str) and re.fullmatch(r"\d+([x,] ?\d+)+", given.strip()):
        given = tuple(map(int, re.findall(r"\d+", given)))
    if _is_shape(given):
        return f"torch.randn({', '.join(map(str, given))})"
    if isinstance(given, np.ndarray):
        return f"torch.from_numpy(array){'.float()' if given.dtype == np.float64 else ''}"
    if isinstance(given, torch.utils.data.DataLoader):
        return "next(iter(loader))"
    if isinstance(given, Mapping):
        codes = {key: _code(part) for key, part in given.items()}
        if codes and None not in codes.values():
            return f"{{{', '.join(f'{key!r}: {code}' for key, code in codes.items())}}}"
    elif isinstance(given, list | tuple):
        parts = [_code(part) for part in given]
        if parts and None not in parts and not _has_fractions(given):
            return _tuple(parts)
        if _is_numbers(given):
            return "torch.tensor(numbers)"
    return None


_ENTRY = "an entry is run on the inputs of the model: leave out one that takes others"
_WANTS = "pass inputs that model(*inputs) accepts: a tensor, a tuple, or a dict of keywords"
_BATCHED = re.compile(r"expected (\d)D\b.*\(got (\d)D")
_UNLIKE = ("should be the same", "expected scalar type", "on the same device", "same dtype")


def _step(called: Callable[..., Any], cause: BaseException, given: Any) -> str:
    """What to do about tensors that it does not take."""
    if isinstance(given, Mapping) and not isinstance(given, dict):
        return "pass inputs=dict(batch): a dict holds the arguments by keyword"
    names = _misfit(called, given)
    if names and isinstance(given, dict):
        return (
            f"a dict holds the keywords of forward({', '.join(names)}): pass"
            f" inputs={{{names[0]!r}: ...}}, or inputs=(batch,) if the dict is one argument"
        )
    if names and isinstance(given, list | tuple) and not _is_pair(given):
        return (
            f"a {type(given).__name__} holds the arguments of forward({', '.join(names)}): pass"
            " inputs=batch[0] of a batch with labels, or inputs=(batch,) if it is one argument"
        )
    asked = _BATCHED.search(str(cause))
    if asked and int(asked[1]) == int(asked[2]) + 1:
        return "pass a batch: inputs=x[None] is a batch of one"
    if any(text in str(cause) for text in _UNLIKE) and isinstance(given, Tensor):
        return "pass inputs=x.to(next(model.parameters())), of its dtype and on its device"
    return _WANTS


def _is_pair(given: Sequence[Any]) -> bool:
    return list(map(type, given)) == [tuple, dict]


def _misfit(called: Callable[..., Any], given: Any) -> list[str]:
    """The names of its arguments, if it cannot be called with these; else none."""
    try:
        signature = inspect.signature(getattr(called, "forward", called))
    except (TypeError, ValueError):  # not Python's own
        return []
    args = given if isinstance(given, list | tuple) else ()
    kwargs = given if isinstance(given, dict) else {}
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return list(signature.parameters)
    return []
