"""Tell what a file is by looking at it: its first bytes, the names in an archive, its text.

Nothing is imported for it and nothing in it is run. A file that bnfold reads is called by its kind,
whatever its name; one that it does not read is called by its format, with the way from there.

    identify(path)      Format: what it is      None: nothing that is known here
"""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bnfold._output_files import shortened
from bnfold._paths import is_file, is_folder, is_there
from bnfold.errors import BnfoldError, ModelUnreadableError, UnsupportedModelError, UsageError
from bnfold.formats import signs
from bnfold.formats.kinds import Format, ModelKind
from bnfold.formats.signs import NAME_ONE

__all__ = ["NAME_ONE", "Format", "ModelKind", "identify", "kind_of_file", "refusal"]

_HEAD = 1 << 16
"""Bytes that are looked at; names of layers and fields stand at the beginning."""


def kind_of_file(source: str | os.PathLike[str]) -> ModelKind:
    """What bnfold reads a file as: what is in it counts, then its name.

    Raises ModelUnreadableError or UsageError, with the format's name and the way from there.
    """
    path = Path(source)
    file_format = None
    if is_file(path):  # neither a pipe nor a device, which cannot be looked at twice
        try:
            file_format = identify(path)
        except OSError as error:
            raise ModelUnreadableError(
                str(shortened(path)), error.strerror or str(error), NAME_ONE
            ) from error
    file_format = file_format or signs.BY_NAME.get(path.suffix.lower())
    if file_format is None:
        raise refusal(os.fspath(source))
    if file_format is signs.CAFFEMODEL:
        raise UsageError(f"{os.fspath(source)} holds weights only", file_format.next_step)
    if file_format.kind is None:
        raise file_format.refusal(source)
    return file_format.kind


def identify(path: Path) -> Format | None:
    """What a file or folder is; None if that cannot be told. Raises OSError."""
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Format("an empty file", "check how it was written or downloaded")
    for begins, called in signs.MAGIC:
        if re.match(begins, head, re.DOTALL | re.IGNORECASE):
            return called
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    text = _text(head)
    if text is not None and (by_text := _of_text(text)) is not None:
        return by_text
    return _of_fields(head) or signs.BY_SUFFIX.get(path.suffix.lower())


def refusal(source: str) -> BnfoldError:
    """What to say of a SOURCE that names nothing bnfold reads, whatever it is."""
    if re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
        return UsageError(f"{source} is an address, not a file", "download it, then name the file")
    path = Path(source)
    if not is_there(source):
        detail = "no such file" if source else "an empty name"
        called = str(shortened(path)) if source else "SOURCE"
        return ModelUnreadableError(called, detail, _similar(path) or NAME_ONE)
    if not is_file(path) and not is_folder(path):
        return UsageError(
            f"{source} is a pipe or a device, which can be read only once",
            "pipe the model in, and write - in its place",
        )
    file_format = identify(path)
    if file_format is not None and file_format.kind is None:
        return file_format.refusal(source)
    if path.is_dir():
        return ModelUnreadableError(source, "a folder", NAME_ONE)
    return UnsupportedModelError(
        f"{source} is of no format that bnfold knows", f"{NAME_ONE}, or convert it to ONNX"
    )


def _similar(path: Path) -> str | None:
    """The name that may have been meant, among those that are there."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"did you mean {path.with_name(near[0])}?" if near else None


def _folder(path: Path) -> Format | None:
    names = {entry.name for entry in path.iterdir()}
    for pattern, file_format in signs.FOLDERS:
        if any(re.fullmatch(pattern, name) for name in names):
            return file_format
    return None


def _archive(path: Path) -> Format | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    for pattern, file_format in signs.ARCHIVES:
        if any(re.search(pattern, name) for name in names):
            return file_format
    return Format("a zip file without a model that bnfold knows in it", NAME_ONE)


def _text(head: bytes) -> str | None:
    """The text, if it is one; a character may be cut at the end."""
    if b"\0" in head:
        return None
    try:
        return head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        return head[: error.start].decode("utf-8-sig")


def _of_text(text: str) -> Format | None:
    for pattern, file_format in signs.TEXTS:
        if re.search(pattern, text):
            return file_format
    return None


def _of_fields(head: bytes) -> Format | None:
    """Models that are a protocol buffer have no magic; the fields of their message tell them."""
    seen = set(_fields(head))
    for test, file_format in signs.MESSAGES:
        if test(seen):
            return file_format
    return None


def _fields(head: bytes) -> Iterator[tuple[int, int]]:
    """(number, wire type) of the fields of the outermost message, as far as they can be read."""
    position = 0
    while position < len(head):
        key, position = _varint(head, position)
        number, wire = key >> 3, key & 7
        if not 0 < number < _MOST_FIELDS or wire not in (0, 1, 2, 5):
            yield (0, 0)  # no message
            return
        yield (number, wire)
        if wire == 0:
            _, position = _varint(head, position)
        elif wire == 2:
            length, position = _varint(head, position)
            position += length
        else:
            position += 8 if wire == 1 else 4


def _varint(head: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(head) and shift < 64:
        value |= (head[position] & 0x7F) << shift
        shift += 7
        position += 1
        if not head[position - 1] & 0x80:
            break
    return value, position


_MOST_FIELDS = 10_000
