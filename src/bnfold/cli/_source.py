"""What a SOURCE on the command line names, and the options that mean something for it.

One word becomes what `bnfold.fold` takes: a path, two paths, a program that is loaded from its
file, or what a factory returns, with the inputs it is run on. `-` is what came on stdin.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold._kinds import caffe_files, folded_beside
from bnfold._storage import refuse_for_torch
from bnfold.cli._stream import NAME, STREAM
from bnfold.cli._torch_source import SIZES, check_options, is_factory, open_source, sizes_of
from bnfold.errors import UsageError
from bnfold.formats import ModelKind, kind_of_file, refusal
from bnfold.frontend import Frontend, Request, frontend_of


@dataclass(frozen=True, slots=True)
class Source:
    """One SOURCE, not opened yet."""

    name: str
    """As it was written."""
    kind: ModelKind
    weights: str | None = None
    """The .caffemodel, where it was named."""
    inputs: Sequence[str] = ()
    """Of --input."""
    eval_mode: bool = False
    place: Path | None = None
    """Where it lies, if that is not its name: what came on stdin."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.name) if self.place is None else self.place

    @property
    def frontend(self) -> Frontend:
        """Who handles it. Raises MissingExtraError."""
        # A comparison runs in threads of its own: those of NumPy's products would be in their way.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return frontend_of(self.kind)

    @property
    def is_caffe(self) -> bool:
        """Whether it is a network in two files."""
        return self.kind is ModelKind.CAFFE_FILES

    @property
    def files(self) -> list[Path]:
        """The files that it names; a factory names none."""
        if self.is_caffe:
            network, beside = caffe_files(self.name)
            return [network, beside if self.weights is None else Path(self.weights)]
        return [] if self.kind is ModelKind.MODULE else [self.path]

    def default_output(self) -> Path:
        """Beside the file; a factory has no such place."""
        if self.kind is ModelKind.MODULE:
            raise UsageError(
                f"{self.name} is no file that an output could lie beside",
                "say where with -o folded.pt2",
            )
        return folded_beside(self.path, self.kind.suffix)

    def open(self) -> tuple[Any, Any]:
        """The model and its inputs, as `bnfold.fold` takes both.

        Raises UsageError, ModelUnreadableError, MissingExtraError and what a factory may raise.
        """
        if self.is_caffe:
            network, weights = self.files
            return (network, weights), None
        if self.kind is ModelKind.ONNX_FILE:
            return self.path, self._shapes()
        name = self.name if self.place is None else str(self.place)
        return open_source(name, self.inputs, eval_mode=self.eval_mode)

    def _shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Every --input under the name of its input."""
        shapes = dict(named_shape(text) for text in self.inputs)
        if "" in shapes:
            name = _only_input(self.path, shapes[""])
            shapes = {key or name: shape for key, shape in shapes.items()}
        return shapes or None


def asked_source(arguments: argparse.Namespace) -> Source:
    """The SOURCE of `fold` and `inspect`, whose options all mean something for it."""
    source = source_of(
        arguments.source,
        weights=arguments.weights,
        inputs=arguments.inputs,
        eval_mode=arguments.eval_mode,
        place=arguments.place,
    )
    check_source(source, phase=arguments.phase, storage=arguments.storage)
    return source


def request_of(arguments: argparse.Namespace, inputs: Any, **more: Any) -> Request:
    """What the options of `fold` and `inspect` ask of a frontend."""
    return Request(
        inputs=inputs,
        clip=arguments.clip,
        merge="auto" if arguments.merge else "never",
        phase=arguments.phase,
        weights=arguments.storage,
        force=arguments.force,
        **more,
    )


def source_of(
    name: str,
    *,
    weights: str | None = None,
    inputs: Sequence[str] = (),
    eval_mode: bool = False,
    place: Path | None = None,
) -> Source:
    """The SOURCE of that name; `place` is where what came on stdin lies.

    Raises ModelUnreadableError or UsageError for what bnfold does not read.
    """
    if name == STREAM and place is not None:
        kind = kind_of_file(place)
        if kind is ModelKind.CAFFE_FILES:
            raise UsageError("a Caffe network is two files, which no pipe holds", "name both")
        return Source(NAME, kind, weights, tuple(inputs), eval_mode, place)
    if is_factory(name):
        kind = ModelKind.MODULE
    elif not os.path.lexists(name):
        raise refusal(name)
    else:
        kind = kind_of_file(name)
    return Source(name, kind, weights, tuple(inputs), eval_mode)


def check_source(source: Source, *, phase: str | None = None, storage: str = "stored") -> None:
    """Raise UsageError for options that mean nothing for this kind, before any work."""
    name = source.name
    if source.is_caffe:
        if source.inputs or source.eval_mode:
            raise UsageError(
                f"--input and --eval mean nothing for {name}",
                "leave them out: a prototxt says its shapes, and has phases instead of modes",
            )
        return
    if source.weights is not None:
        raise UsageError(
            f"WEIGHTS ({source.weights}) are for a .prototxt, and {name} is none", "leave them out"
        )
    if phase is not None:
        raise UsageError(f"--phase is for a .prototxt, and {name} is none", "leave it out")
    if source.kind is ModelKind.ONNX_FILE:
        if source.eval_mode:
            raise UsageError("--eval is for package.module:factory", "leave it out")
        for text in source.inputs:
            named_shape(text)
        return
    if storage != "stored":
        raise refuse_for_torch(f"--weights {storage}")
    check_options(name, source.inputs, eval_mode=source.eval_mode)


def named_shape(text: str, option: str = "--input") -> tuple[str, tuple[int, ...]]:
    """`name:1x3x224x224`, or a shape alone; names may hold colons themselves."""
    match = re.fullmatch(rf"(?:(.+):)?({SIZES})", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"{option} {text} is no shape of an input", "write it like image:1x3x224x224"
        )
    return match[1] or "", sizes_of(match[2])


def _only_input(path: Path, shape: Sequence[int]) -> str:
    frontend_of(ModelKind.ONNX_FILE)  # says which extra is missing
    from bnfold.frontends.onnx.read import read_file

    graph = read_file(path).proto.graph
    given = {tensor.name for tensor in graph.initializer}
    names = [info.name for info in graph.input if info.name not in given]
    if len(names) != 1:
        text = "x".join(str(size) for size in shape)
        raise UsageError(
            f"--input {text}: which of the inputs {', '.join(names)}?",
            f"write it like {names[0] if names else 'name'}:{text}",
        )
    return str(names[0])
