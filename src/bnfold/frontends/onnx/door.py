"""ONNX behind the door; see `bnfold.frontend` for what each function is.

A model is a path, a ModelProto or an onnx_ir.Model. Of a file the folded one lies beside its place
before it is compared: what is run is what will be moved there.
"""

from __future__ import annotations

import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import BnfoldError, UsageError
from bnfold.frontend import Compare, Counts, Folded, Look, NotRunError, Request
from bnfold.frontends import fold_less
from bnfold.frontends.onnx.facts import facts
from bnfold.frontends.onnx.fold import (
    check_data_target,
    check_target,
    fold_model,
    prepare_for,
    read_model,
)
from bnfold.frontends.onnx.folding import Folding
from bnfold.frontends.onnx.read import OnnxModel, files_of, inner_graphs, read_file
from bnfold.frontends.onnx.write import Staged, data_name
from bnfold.report import FoldReport
from bnfold.verify.inputs import are_named

if TYPE_CHECKING:
    from bnfold.bench.settings import Subject, Wishes
    from bnfold.frontends.onnx.runner import OnnxRunner
    from bnfold.verify.quick import Quick
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

IS_TIMED = True


def check(model: Any, request: Request) -> None:
    """The output has to be free, and not the model."""
    if request.output is not None:
        check_target(model, request.output, force=request.force)


def inspect(model: Any, request: Request) -> Look:
    """Every new tensor is computed once, to see that it fits."""
    source = _read(model)
    before, said, files = _counted(source), facts(source.proto), files_of(model, source)
    folding = prepare_for(request, source)
    folding.check()
    counts = before, _counted(folding.folded())
    return Look(folding.report.planned(), counts, files, said)


def fold(model: Any, request: Request) -> FoldedModel | FoldedFile:
    """A model in memory is folded at once, a file is written where it waits for its place."""
    if not isinstance(model, Path):
        folded, report = fold_model(model, request)
        return FoldedModel(model, folded, report, request.inputs)
    source = read_file(model)
    if request.output is not None and (source.external or request.external_data):
        check_data_target(source, request.output, force=request.force)
    counts = _counted(source)
    output = request.output or Path("model.onnx")
    stack = ExitStack()
    try:
        quick, content = None, None
        if request.ahead:
            quick, content = _run_ahead(model, source, request, stack)
        folding = prepare_for(request, source)
        if quick is not None:
            quick.look_inside([folding.rescalings])
        waits = output.parent
        if request.output is None:
            waits = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        staged = stack.enter_context(
            folding.staged(output, waits, request.step, has_data=request.external_data)
        )
    except BaseException:
        stack.close()
        raise
    files = files_of(model, source)
    made = FoldedFile(model, request, folding, counts, files, staged, stack, quick, content)
    weakref.finalize(made, stack.close)
    return made


def _read(model: Any) -> OnnxModel:
    return read_file(model) if isinstance(model, Path) else read_model(model)


_LARGE = 1 << 29
"""Bytes of weights from which on one model at a time is in memory."""


def _run_ahead(
    path: Path, source: OnnxModel, request: Request, stack: ExitStack
) -> tuple[Quick | None, OnnxModel | None]:
    """The original, run while the fold goes on, and its content; None where that is not worth it.

    It stops where the stack ends, so also where a signal comes while it is starting.
    """
    from bnfold.frontends.onnx.runner import file_runner
    from bnfold.verify.quick import run_ahead

    if sum(data.nbytes for data in source.tensor_data.values()) > _LARGE:
        return None, None
    try:
        original = file_runner(path, request.inputs)
    except BnfoldError:  # the fold says what is wrong
        return None, None
    original.threads = 1  # the fold has the other processors
    stack.callback(original.stop)
    return run_ahead(original), original.model


def _counted(model: OnnxModel) -> Counter[str]:
    """Nodes by operator, those of bodies and functions too."""
    graphs: list[Any] = [model.proto.graph, *model.proto.functions]
    counts: Counter[str] = Counter()
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += 1
            for attribute in node.attribute:
                graphs += inner_graphs(attribute)
    return counts


@dataclass(frozen=True, slots=True)
class FoldedModel:
    """A folded model in memory."""

    original: Any
    model: Any
    report: FoldReport
    pins: Mapping[str, Sequence[int]] | None
    files: Sequence[Path] = ()
    written: Sequence[Path] = ()

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """Nodes by operator."""
        return _counted(read_model(self.original)), _counted(read_model(self.model))

    def runners(self) -> tuple[Runner, Runner]:
        """Both in memory."""
        from bnfold.frontends.onnx.runner import model_runner

        original = model_runner(self.original, self.pins, "the original")
        return original, model_runner(self.model, self.pins, "the folded model")

    def judged_quickly(self) -> None:
        """There is no quicker judge."""

    def proven(self, found: VerifyResult, compare: Compare) -> tuple[Folded, VerifyResult | str]:
        """Nobody looks for that."""
        return self, found

    def deliver(self) -> Any:
        """The folded model."""
        return self.model

    def close(self) -> None:
        """There is nothing outside of memory."""


@dataclass(slots=True, weakref_slot=True)
class FoldedFile:
    """A folded model on the disk; its files vanish with it, unless they are moved away."""

    path: Path
    request: Request
    folding: Folding
    before: Counter[str]
    """Ops by type, as they were read: a fold works in the bodies of the model itself."""
    files: Sequence[Path]
    staged: Staged
    stack: ExitStack = field(repr=False)
    quick: Quick | None
    """The original, run ahead."""
    content: OnnxModel | None
    """The original once more, which no fold works in, if it was read."""
    pair: tuple[OnnxRunner, OnnxRunner] | None = field(default=None, init=False)

    @property
    def report(self) -> FoldReport:
        """What the plan did that was written."""
        return self.folding.report

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """Nodes by operator."""
        after = read_file(self.staged.model) if self.pair is None else self.pair[1].model
        return self.before, _counted(after)

    def runners(self) -> tuple[Runner, Runner]:
        """The files themselves, the folded one where it lies until it is moved."""
        from bnfold.frontends.onnx.runner import file_runner

        for path in (self.path, self.staged.model):
            if not _is_text(path):
                raise NotRunError(f"ONNX Runtime opens no file whose path is no UTF-8: {path}")
        shapes = self.folding.shapes.choices[0]
        try:
            original = file_runner(self.path, shapes, model=self.content)
        except UsageError as error:
            raise NotRunError(error.problem, error.next_step) from error
        original.known = [self.folding.rescalings]
        made = file_runner(self.staged.model, shapes, name=f"the folded {self.path}")
        self.pair = original, made
        return self.pair

    def judged_quickly(self) -> VerifyResult | None:
        """In float64 by NumPy, on smaller images; see `verify.quick`."""
        if self.quick is None or self.pair is None:
            return None
        original, made = self.pair
        if not self.quick.has_inputs_of(original):
            self.quick.stop()
            return None
        return self.quick.judge(replace(made, threads=1), original.known or ())

    @property
    def gone(self) -> Sequence[str]:
        """See `frontends.fold_less`."""
        return self.folding.gone

    @property
    def late(self) -> Sequence[str]:
        """See `frontends.fold_less`."""
        return self.folding.late

    def again(self, request: Request) -> FoldedFile:
        """See `frontends.fold_less`."""
        made = fold(self.path, request)
        assert isinstance(made, FoldedFile)
        return made

    def proven(self, found: VerifyResult, compare: Compare) -> tuple[Folded, VerifyResult | str]:
        """Without merging, and with fewer steps removed where digits are lost."""
        return fold_less.proven(self, found, compare)

    def deliver(self) -> Path:
        """Move the files into their place."""
        assert self.request.output is not None
        self.staged.move_to(self.request.output, force=self.request.force)
        return self.request.output

    @property
    def written(self) -> Sequence[Path]:
        """The message, and the external data, if there is any."""
        output = self.request.output
        assert output is not None
        data = [output.with_name(data_name(output.name))] if self.staged.has_data else []
        return (output, *data)

    def close(self) -> None:
        """Remove what was not moved into its place."""
        self.stack.close()


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def runner(model: Any, name: str, inputs: Any, like: Sequence[InputSpec] | None) -> Runner:
    """In ONNX Runtime; `inputs` are shapes or arrays by name."""
    from bnfold.frontends.onnx.runner import file_runner, model_runner

    given = inputs if are_named(inputs) else {}  # others are what only a module understands
    arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
    shapes = {key: tuple(arrays[key].shape if key in arrays else given[key]) for key in given}
    if isinstance(model, Path):
        made = file_runner(model, shapes or None, like=like)
    else:
        made = model_runner(model, shapes or None, name, like=like)
    if arrays:
        made.specs = tuple(replace(spec, given=arrays.get(spec.name)) for spec in made.specs)
    return made


def subject(
    models: Mapping[str, Any], inputs: Any, runtimes: Sequence[str] | None, wishes: Wishes
) -> Subject:
    """ONNX Runtime, with and without its own optimisations."""
    from bnfold.frontends.onnx.runtimes import PLAIN, OnnxSubject

    return OnnxSubject(models, inputs, runtimes=runtimes or (PLAIN,), wishes=wishes)
