"""Which models the words after `bnfold fold` name: files, pairs of files, folders, a stream.

net.onnx                        one model
deploy.prototxt w.caffemodel    one model, the weights being the second word, or the first
a.onnx b.onnx models/           many models, those of a folder being found by their suffixes
-                               what comes on stdin
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnfold._kinds import caffe_files
from bnfold._paths import is_folder
from bnfold.cli._stream import STREAM
from bnfold.cli._torch_source import is_factory
from bnfold.errors import BnfoldError, UsageError
from bnfold.formats import ModelKind, kind_of_file

_SUFFIXES = (".onnx", ".prototxt", ".pt2")
"""What is looked for in a folder; our own outputs (model.folded.onnx) are left out there."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model to work on."""

    source: str
    """As it was named, or found."""
    weights: str | None = None
    """The .caffemodel, where it was named."""
    place: Path = Path()
    """Where it lies in the folder that was named: the same place in --output-dir."""


def models(words: Sequence[str]) -> list[Model]:
    """What the words name. Raises UsageError for a folder without a model."""
    named: list[Model] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word != STREAM and not is_factory(word) and is_folder(word):
            inside = list(_in_folder(Path(word)))
            named += inside or [Model(word, place=Path(Path(word).name))]
        elif rest and _takes_weights(word, rest[0]):
            named.append(Model(word, rest.pop(0), Path(Path(word).name)))
        elif rest and _is_weights(word) and _is_network(rest[0]):
            network = rest.pop(0)
            named.append(Model(network, word, Path(Path(network).name)))
        else:
            named.append(Model(word, place=Path(Path(word).name)))
    return named


def _takes_weights(word: str, following: str) -> bool:
    """Whether the word behind a network names its weights, not another model."""
    if not _is_network(word):
        return False
    if _is_weights(following):
        return True
    return following != STREAM and not is_factory(following) and _kind(following) is None


def _is_network(word: str) -> bool:
    return word != STREAM and not is_factory(word) and _kind(word) is ModelKind.CAFFE_FILES


def _is_weights(word: str) -> bool:
    return Path(word).suffix.lower() == ".caffemodel"  # damaged ones, too


def _kind(word: str) -> ModelKind | None:
    try:
        return kind_of_file(word)
    except BnfoldError:
        return None


def _is_meant_as_output(first: Model, second: Model) -> bool:
    """Whether the second is named as other tools have it: model.onnx out.onnx."""
    suffixes = {Path(model.source).suffix.lower() for model in (first, second)}
    is_there = [os.path.lexists(model.source) for model in (first, second)]
    return suffixes <= set(_SUFFIXES) and len(suffixes) == 1 and is_there == [True, False]


def _in_folder(folder: Path) -> Iterator[Model]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or path.stem.endswith(".folded"):
            continue
        if not path.is_file():
            continue
        if path.suffix.lower() == ".prototxt" and not caffe_files(path)[1].exists():
            continue  # a solver, or a network for training
        yield Model(str(path), place=path.relative_to(folder))


def check_many(named: Sequence[Model], *, output: Path | None, folder: Path | None) -> None:
    """Raise UsageError, before any work, for what does not go with several models."""
    if output is not None:
        raise UsageError(
            f"-o names one file, and there are {len(named)} models", "use --output-dir"
        )
    if len(named) == 2 and folder is None and _is_meant_as_output(*named):
        raise UsageError(
            f"{named[1].source}: no such file",
            f"write -o {named[1].source}, if that is where to write",
        )
    if any(model.source == STREAM for model in named):
        raise UsageError("stdin holds one model", "leave the others out")
    for number, model in enumerate(named):
        if model in named[:number]:
            raise UsageError(f"{model.source} is named twice", "leave one out")
    if folder is None:
        return
    places: dict[str, str] = {}
    for model in named:
        earlier = places.setdefault(os.fspath(model.place).lower(), model.source)
        if earlier != model.source:
            raise UsageError(
                f"{model.source} and {earlier} would both become {folder / model.place}",
                "name the folder that holds both, or fold them one by one",
            )
