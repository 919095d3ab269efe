"""Turn the command's SOURCE into a PyTorch model: a .pt2 file, or `package.module:factory`.

A file is only read (see `_archive`); a factory is code that the user names, so it is run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold._output_files import shortened
from bnfold._paths import is_folder, is_there
from bnfold.errors import (
    ExampleInputError,
    ModelUnreadableError,
    TrainingModeError,
    UnsupportedModelError,
    UsageError,
)
from bnfold.formats import NAME_ONE

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

_DTYPES = (
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "bool"),
)
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""
_SEED = 0
_BEYOND = 2
"""Integer inputs are below this: small enough to be an index into anything."""


_SIZE = "[1-9][0-9]*"
SIZES = rf"{_SIZE}(?:x{_SIZE})*|{_SIZE}(?:,{_SIZE})*"
"""1x3x224x224, or 1,3,224,224 as onnxsim and onnxslim have it."""


def sizes_of(text: str) -> tuple[int, ...]:
    """The sizes of a text that is like `SIZES`."""
    return tuple(int(size) for size in re.split("[x,]", text))


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One `--input`."""

    shape: tuple[int, ...]
    """Its size along each axis."""
    dtype: str
    """Name of its dtype in torch."""

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read `1x3x224x224`, `1,3,224,224` or `4x16:int64`."""
        match = re.fullmatch(rf"({SIZES})(?::(\w+))?", text, re.ASCII)
        if match is None:
            raise UsageError(
                f"--input {text} is no shape", "write sizes with x between, like 1x3x224x224"
            )
        dtype = match[2] or "float32"
        if dtype not in _DTYPES:
            raise UsageError(
                f"--input {text}: no dtype {dtype}", f"use one of {', '.join(_DTYPES)}"
            )
        return cls(sizes_of(match[1]), dtype)


def check_options(source: str, inputs: Sequence[str], *, eval_mode: bool) -> None:
    """Raise UsageError for options that mean nothing for this source, before any work is done."""
    for text in inputs:
        InputSpec.parse(text)
    if is_factory(source):
        return
    if inputs or eval_mode:
        raise UsageError(
            f"--input and --eval are for package.module:factory, and {source} is a file",
            "leave them out: an exported program carries its inputs and has no modes",
        )


def is_factory(source: str) -> bool:
    """Whether SOURCE is written like `package.module:attribute`, and no file has that name."""
    return bool(re.fullmatch(r"[\w.]+:[\w.]+", source)) and not is_there(source)


def open_source(
    source: str, inputs: Sequence[str], *, eval_mode: bool
) -> tuple[nn.Module | ExportedProgram, Inputs | None]:
    """The model, and what a module is run on; a program brings its own inputs.

    Raises UsageError, ModelUnreadableError and the errors of its inputs.
    """
    import bnfold.frontends.torch  # noqa: F401  # says which extra is missing, if PyTorch is

    if is_factory(source):
        return _from_factory(source, inputs, eval_mode=eval_mode)
    return _from_file(source), None


def _from_file(source: str) -> ExportedProgram:
    from bnfold.cli._archive import load_program

    file = Path(source)
    if not source or is_folder(file):
        raise no_file(source)
    try:
        file.open("rb").close()
    except FileNotFoundError as error:
        raise ModelUnreadableError(source, "no such file", NAME_ONE) from error
    except OSError as error:
        raise ModelUnreadableError(
            str(shortened(file)), error.strerror or str(error), NAME_ONE
        ) from error
    return load_program(file)


def no_file(source: str) -> ModelUnreadableError:
    """The error for a SOURCE that is a folder, or empty."""
    if source:
        return ModelUnreadableError(source, "a folder", NAME_ONE)
    return ModelUnreadableError("SOURCE", "an empty name", NAME_ONE)


def _from_factory(
    source: str, inputs: Sequence[str], *, eval_mode: bool
) -> tuple[nn.Module, Inputs]:
    import torch

    model = _build(source)
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedModelError(
            f"{source} is a {type(model).__module__}.{type(model).__qualname__}",
            "name a torch.nn.Module, or a function without arguments that returns one",
        )
    if eval_mode:
        model.eval()
    elif model.training:
        raise TrainingModeError(source)
    if not inputs:
        raise ExampleInputError(source, None)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return model, (_tensors(inputs, device), {})


def _build(source: str) -> Any:
    module_name, attribute = source.split(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    target: Any = _import(source, module_name)
    for name in attribute.split("."):
        if not hasattr(target, name):
            raise UsageError(
                f"{source}: {module_name} has no {attribute}", "check the name after the colon"
            )
        target = getattr(target, name)
    import torch

    if isinstance(target, torch.nn.Module) or not callable(target):
        return target
    try:
        return target()
    except (Exception, SystemExit) as error:
        raise ModelUnreadableError(
            source,
            f"raised {type(error).__name__}: {error}".rstrip("."),
            "name a function that builds the model without arguments (--debug for the traceback)",
        ) from error


def _import(source: str, module_name: str) -> Any:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{source}: there is no module {error.name}",
                "run from the folder that holds it, or install it",
            ) from error
        raise _import_failed(source, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(source, error) from error


def _import_failed(source: str, error: BaseException) -> ModelUnreadableError:
    return ModelUnreadableError(
        source,
        f"importing it raised {type(error).__name__}: {error}".rstrip("."),
        "make the module importable (--debug for the traceback)",
    )


def _tensors(inputs: Sequence[str], device: torch.device) -> tuple[torch.Tensor, ...]:
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    tensors = []
    for text in inputs:
        spec = InputSpec.parse(text)
        dtype: torch.dtype = getattr(torch, spec.dtype)
        try:
            # float16 and bool cannot be drawn everywhere, so both are drawn wide and converted.
            wide = (
                torch.randn(spec.shape, generator=generator)
                if dtype.is_floating_point
                else torch.randint(_BEYOND, spec.shape, generator=generator)
            )
            tensors.append(wide.to(device, dtype))
        except RuntimeError as error:  # more memory than there is
            raise UsageError(f"--input {text}: {error}".rstrip("."), "use smaller sizes") from error
    return tuple(tensors)
