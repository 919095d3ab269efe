"""Fold and inspect ONNX models: read, lift, plan, apply, write, report."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from onnx import ModelProto

from bnfold._output_files import check_place, is_same_file, shortened
from bnfold._storage import Weights
from bnfold.core.fitting import Fitting, Stays, bans_of
from bnfold.core.fold_again import may_fold_again
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.errors import UsageError
from bnfold.frontend import Request
from bnfold.frontends.merge_report import Merging
from bnfold.frontends.onnx.analysis import Analysis, Pins
from bnfold.frontends.onnx.bodies import fold_bodies
from bnfold.frontends.onnx.folding import Folding, InnerFolds, decide, has_bare_constants, is_spread
from bnfold.frontends.onnx.functions import fold_functions
from bnfold.frontends.onnx.join import names_if_shared
from bnfold.frontends.onnx.lift import lift
from bnfold.frontends.onnx.loops import analyse_through_loops
from bnfold.frontends.onnx.merge import are_left, merges_of
from bnfold.frontends.onnx.own_lengths import with_own_lengths
from bnfold.frontends.onnx.read import OnnxModel, read_proto
from bnfold.frontends.onnx.sites import Lifted
from bnfold.frontends.onnx.stacks import are_bared
from bnfold.frontends.onnx.tensor_data import FileData
from bnfold.frontends.onnx.write import data_name
from bnfold.report import FoldReport

if TYPE_CHECKING:
    import onnx_ir


class _Options(NamedTuple):
    """How a model is to be folded."""

    clip: ClipMode
    weights: Weights
    merge: MergeMode
    stays: Stays


def prepare(
    model: OnnxModel,
    inputs: Pins,
    *,
    clip: ClipMode,
    weights: Weights = "stored",
    merge: MergeMode = "never",
    stays: Stays | None = None,
) -> Folding:
    """Read, lift and plan; bodies and functions are folded first, at once, in `model`."""
    known, shared = analyse_through_loops(model, inputs), names_if_shared(model.proto.graph)
    stays = stays or {}

    def prepare_inner(inner: OnnxModel, prefix: str) -> Folding:
        own = {name.removeprefix(prefix): stays[name] for name in stays if name.startswith(prefix)}
        return prepare(inner, None, clip=clip, weights=weights, stays=own)

    inside = fold_bodies(model, known, prepare_inner)
    if model.outside is None:
        fold_functions(model, known, prepare_inner, inside)
    analysis = _analysed(model, inputs) if inside.changed else with_own_lengths(model, known)
    options = _Options(clip, weights, merge, stays)
    folding = _prepared(model, inputs, analysis, inside, options)
    while _is_another_due(folding, merge):
        folding.check()  # which may change the plan
        model = replace(folding.rewritten(), outside=model.outside)
        analysis = _analysed(model, inputs)
        later = _prepared(model, inputs, analysis, inside, options, folding)
        later.check()  # where nothing that it would remove fits its dtype, it is no progress
        if not (later.merging or later.plan.removed):
            break
        later.earlier, folding = folding, later
    folding.known = shared
    return folding


def _analysed(model: OnnxModel, inputs: Pins) -> Analysis:
    """With lengths of its own; bodies and functions are told what is known without."""
    return with_own_lengths(model, analyse_through_loops(model, inputs))


def _is_another_due(folding: Folding, merge: MergeMode) -> bool:
    """Whether a fold leaves what another one may merge, or remove."""
    lifted, plan = folding.lifted, folding.plan
    if is_spread(lifted, plan) or has_bare_constants(lifted, plan):
        return True
    if may_fold_again(lifted.graph, plan) or are_bared(lifted, plan):
        return True
    return merge == "auto" and are_left(lifted, plan, is_merged=bool(folding.merging))


def _prepared(
    model: OnnxModel,
    inputs: Pins,
    analysis: Analysis,
    inside: InnerFolds,
    options: _Options,
    earlier: Folding | None = None,
) -> Folding:
    """What is merged, and the plan for what comes of it; no merge makes a step stay."""
    lifted = lift(analysis.network, analysis.constants, analysis.shapes)
    best: Folding | None = None
    merges = options.merge == "auto"
    for merged, merging in merges_of(model, lifted) if merges else [(model, Merging())]:
        own, view = analysis, lifted
        if merging:
            own = _analysed(merged, inputs)
            view = lift(own.network, own.constants, own.shapes)
        view, fitting = _fitted(own, view, options, earlier)
        folding = Folding(merged, own.shapes, view, fitting, inside, options.weights, merging)
        if best is None or folding.kept < best.kept:
            best = folding
        if not best.kept:
            break
    assert best is not None
    return best


def _fitted(
    analysis: Analysis, lifted: Lifted, options: _Options, earlier: Folding | None
) -> tuple[Lifted, Fitting]:
    """The plan; where a weight may not serve all its readers, see if weights of their own do."""
    called = str if earlier is None else earlier.called

    def fitting_of(lifted: Lifted) -> Fitting:
        bans = bans_of(lifted.graph, options.stays, called)
        return Fitting(partial(decide, lifted, options.clip), bans)

    fitting = fitting_of(lifted)
    has_ties = any(getattr(op.role, "tie", None) is not None for op in lifted.graph.ops)
    if fitting.plan.kept and has_ties:
        alone = lift(analysis.network, analysis.constants, analysis.shapes, ties=False)
        better = fitting_of(alone)
        if len(better.plan.removed) > len(fitting.plan.removed):
            return alone, better
    return lifted, fitting


def prepare_for(request: Request, model: OnnxModel) -> Folding:
    """The same, as it was asked for."""
    return prepare(
        model,
        request.inputs,
        clip=request.clip,
        weights=request.weights,
        merge=request.merge,
        stays=request.stays,
    )


def fold_model(model: Any, request: Request) -> tuple[Any, FoldReport]:
    """See `bnfold.fold`: a ModelProto or an onnx_ir.Model, and the same comes back."""
    if not isinstance(model, ModelProto):
        folded, folding = _fold_ir(model, request)
        return folded, folding.report
    folding = prepare_for(request, read_proto(model))
    return folding.proto(), folding.report


def fold_in_place(model: onnx_ir.Model, request: Request) -> tuple[bool, FoldReport]:
    """The same, but the model gets another graph and other functions, if there is a step to remove.

    Returns whether there was one.
    """
    folded, folding = _fold_ir(model, request)
    if not folding.changes:
        return False, folding.report
    model.graph = folded.graph
    model.ir_version = folded.ir_version
    model.functions.clear()
    model.functions.update(folded.functions)
    return True, folding.report


def _fold_ir(model: onnx_ir.Model, request: Request) -> tuple[onnx_ir.Model, Folding]:
    from bnfold.frontends.onnx import ir

    source = ir.read_model(model)
    before = dict(source.tensor_data)
    folding = prepare_for(request, source)
    folding.check()
    return ir.folded_like(model, folding.folded(), before), folding


def check_target(path: Path, output: Path, *, force: bool) -> None:
    """Raise UsageError if the output cannot go there: asked before any work is done."""
    if is_same_file(output, path):
        raise UsageError(f"{output} is the model itself", "name another output")
    if output.suffix.lower() != ".onnx":
        raise UsageError(f"{shortened(output)} does not end in .onnx", "name it something.onnx")
    check_place(output, force=force)
    check_name(output)


def check_data_target(model: OnnxModel, output: Path, *, force: bool) -> None:
    """The same for the file of external data, and for the data that the model is made of."""
    data = output.with_name(data_name(output.name))
    read = {part.path for part in model.tensor_data.values() if isinstance(part, FileData)}
    for path in (output, data):
        if any(is_same_file(path, source) for source in read):
            raise UsageError(
                f"{path} is the external data of the model itself", "name another output"
            )
    try:
        check_place(data, force=force)
    except UsageError as error:
        raise UsageError(
            f"the external data of the output belongs beside it, and {error.problem}",
            error.next_step,
        ) from error


def check_name(output: Path) -> None:
    """Raise UsageError for a name that a message cannot hold: it names its data after itself."""
    try:
        output.name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the name {output.name!r} is no UTF-8, as names in ONNX have to be", "choose another"
        ) from error


def read_model(model: Any) -> OnnxModel:
    """A ModelProto or an onnx_ir.Model, read."""
    if isinstance(model, ModelProto):
        return read_proto(model)
    from bnfold.frontends.onnx import ir

    return ir.read_model(model)
