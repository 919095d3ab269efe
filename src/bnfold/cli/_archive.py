"""Read a .pt2 archive without letting it run code.

`torch.export.load` trusts its file. PyTorch 2.13 unpickles freely where the archive asks for it
(weights and constants marked `use_pickle`, opaque constants, example inputs that weights_only
refused), loads compiled libraries, evaluates shape expressions through sympy, writes names of the
graph into Python source, and looks an operator up as any attribute of `torch` (`torch.os.system`).
So a file from a stranger is read in four steps:

1. Members are read once, by one reader, and handed on as a fresh archive in memory: what was
   looked at is what is loaded.
2. Members that can only be loaded by running something are refused.
3. In the graph, every name, operator, expression and tree is one of the plain forms that
   `torch.export.save` writes for a network; anything else is refused (see `_program_json`).
4. Tensors are loaded with weights_only, whatever the archive or PyTorch's code says.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.cli._pickles import is_pickle
from bnfold.cli._program_json import NotPlainError, check_json
from bnfold.errors import ModelUnreadableError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ANEW = "write the file anew with torch.export.save(torch.export.export(model, inputs), path)"
_IN_PYTHON = "if you trust the file, load it with torch.export.load and call bnfold.fold on it"

_OLD_GRAPH = "serialized_exported_program.json"
"""The member that marks the layout that PyTorch wrote up to 2.7."""


def load_program(file: Path) -> ExportedProgram:
    """The exported program in `file`. Raises ModelUnreadableError; runs nothing from the file."""
    members = _members(file)
    try:
        _check_members(members)
    except NotPlainError as refused:
        detail = f"{refused}, and it is not loaded because loading could run code from the file"
        raise ModelUnreadableError(str(file), detail, _IN_PYTHON) from refused
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ModelUnreadableError(str(file), f"damaged archive: {error}", _ANEW) from error
    import torch

    try:
        with _weights_only(), _quiet("torch.export"):
            return torch.export.load(_archive(members))
    except Exception as error:  # PyTorch raises whatever its parsers meet
        text = str(error).strip().splitlines()
        detail = f"PyTorch {torch.__version__} cannot load it: {text[0] if text else repr(error)}"
        raise ModelUnreadableError(str(file), detail.rstrip("."), _ANEW) from error


def _members(file: Path) -> dict[str, bytes]:
    if not zipfile.is_zipfile(file):
        if is_pickle(file):
            raise _pickled(file)
        raise ModelUnreadableError(
            str(file), "not a .pt2 archive, or one that is cut off or damaged", _ANEW
        )
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            # PyTorch's reader finds members without regard to case.
            if len({name.lower() for name in names}) != len(names):
                raise ModelUnreadableError(str(file), "two members have the same name", _ANEW)
            if not _is_program(names):
                if any(name.endswith("data.pkl") for name in names):
                    raise _pickled(file)
                raise ModelUnreadableError(
                    str(file), "a zip file without an exported program in it", _ANEW
                )
            _check_sizes(file, archive)
            for name in names:
                members[name] = archive.read(name)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelUnreadableError(str(file), f"damaged archive: {error}", _ANEW) from error
    return members


def _check_sizes(file: Path, archive: zipfile.ZipFile) -> None:
    """Raise ModelUnreadableError for a file that unpacks to much more than it is."""
    claimed = sum(info.file_size for info in archive.infolist())
    held = file.stat().st_size
    if claimed > _MOST_UNPACKED * held:  # PyTorch does not even compress
        raise ModelUnreadableError(
            str(file), f"{held} bytes that claim to unpack to {claimed}", _ANEW
        )


_MOST_UNPACKED = 20


def _is_program(names: list[str]) -> bool:
    return any(name == _OLD_GRAPH or name.endswith("/archive_format") for name in names)


def _pickled(file: Path) -> ModelUnreadableError:
    return ModelUnreadableError(
        str(file),
        "a pickle, which can run any code when it is loaded, so it is not",
        "export the model with torch.export.save and fold the .pt2,"
        " or name the code that builds it: bnfold fold package.module:factory --input 1x3x224x224",
    )


def _archive(members: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


@contextmanager
def _weights_only() -> Iterator[None]:
    """Every torch.load is one with weights_only=True, those that ask for False included."""
    ours = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """PyTorch logs a traceback on its way to an error that we report ourselves."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_members(members: dict[str, bytes]) -> None:
    for name, content in members.items():
        path = f"/{name.lower()}"
        for folder, what in _COMPILED.items():
            if folder in path:
                raise NotPlainError(f"member {name} is {what}")
        if path.endswith(".json") or "/models/" in path:
            check_json(json.loads(content), name)


_COMPILED = {
    "/data/aotinductor/": "compiled code",
    "/data/executorch/": "compiled code",
    "/data/mtia": "compiled code",
}
