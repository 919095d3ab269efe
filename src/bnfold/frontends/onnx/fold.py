"""Fold and inspect ONNX models: read, lift, plan, apply, write, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from bnfold._places import check_place, is_same_file, shortened
from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.plan import Plan, ban_overflow, make_plan
from bnfold.core.reasons import Reason
from bnfold.core.removal import ClipMode
from bnfold.errors import UsageError
from bnfold.frontends.onnx.apply import Overflow, plan_edits
from bnfold.frontends.onnx.bodies import Inside, fold_bodies
from bnfold.frontends.onnx.bulk import FileBulk
from bnfold.frontends.onnx.constants import Constants, find_constants
from bnfold.frontends.onnx.functions import fold_functions
from bnfold.frontends.onnx.lift import lift
from bnfold.frontends.onnx.nodes import MALFORMED, Network, read_network
from bnfold.frontends.onnx.read import OnnxModel, read_file, read_proto
from bnfold.frontends.onnx.rewrite import rewrite
from bnfold.frontends.onnx.shapes import Shapes, choose_inputs, infer
from bnfold.frontends.onnx.sites import Lifted
from bnfold.frontends.onnx.write import Staged, data_name, staged, to_proto
from bnfold.network import draw
from bnfold.report import FoldReport, Item, Kept, Removed

Pins = Mapping[str, Sequence[int]] | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """What is known about a graph before it is lifted."""

    network: Network
    shapes: Shapes
    constants: Constants


@dataclass(slots=True)
class Folding:
    """A model and how it is going to be folded; overflow may still change the plan."""

    model: OnnxModel
    shapes: Shapes
    lifted: Lifted
    clip: ClipMode
    banned: dict[int, Obstacle]
    plan: Plan
    inside: Inside
    """What was done in the bodies of control flow; they are folded already."""

    @property
    def scalars_gone(self) -> int:
        """How many steps with a single number go, in bodies too."""
        return len(self.lifted.scalars & self.plan.removed.keys()) + self.inside.scalars

    @property
    def report(self) -> FoldReport:
        """What the plan does."""
        own = affine_items(self.lifted, self.plan)
        clips = [self.lifted.graph.ops[number].name for number in self.plan.clip]
        clips += self.inside.clips
        network = draw(self.lifted.graph, self.plan, [item.name for item in own])
        items, versions = own + self.inside.items, {"onnx": onnx.__version__}
        return FoldReport(tuple(items), tuple(clips), self._notes(), versions, network)

    def _notes(self) -> tuple[str, ...]:
        gone = self.scalars_gone
        malformed = [n for n in self.lifted.network.nodes if n.op.startswith(f"{MALFORMED}::")]
        notes = []
        if self.shapes.for_given_only:
            notes.append(
                "The network takes no other shapes, or none that could be followed: what was"
                " decided holds for the given shapes only."
            )
        if gone:
            notes.append(
                f"{gone} further step{'s' * (gone > 1)} that scale or shift by a single number"
                " went too."
            )
        open_names = sorted(self.lifted.network.overridable)
        if open_names and self.plan.kept:
            shown = ", ".join(open_names[:3])
            more = f" and {len(open_names) - 3} more" if len(open_names) > 3 else ""
            notes.append(
                f"{shown}{more} are initializers and inputs of the graph: a caller may override"
                " them, so they are no constants. If nobody does, drop them from the inputs and"
                " fold again."
            )
        if malformed:
            shown = ", ".join(node.name for node in malformed[:3])
            more = f" and {len(malformed) - 3} more" if len(malformed) > 3 else ""
            notes.append(
                f"Nothing passes {shown}{more}: not with the inputs, outputs and attributes that"
                " such an operator has."
            )
        return tuple(notes)

    def folded(self) -> OnnxModel:
        """The folded model, large tensors still to be computed."""
        while True:
            try:
                return rewrite(self.model, self.lifted, plan_edits(self.lifted, self.plan))
            except Overflow as overflow:
                self.ban(overflow)

    def ban(self, overflow: Overflow) -> None:
        """Plan again, without what makes a weight overflow."""
        more = ban_overflow(self.plan, [overflow.op])
        assert more, "an op overflows although no removed step touches it"
        self.banned = {**self.banned, **more}
        self.plan = decide(self.lifted, self.clip, self.banned)

    @contextmanager
    def staged(
        self, output: Path, folder: Path, step: Callable[[float], None] = lambda part: None
    ) -> Iterator[Staged]:
        """The folded model, written inside a folder, to be moved to its place.

        `step` is told which part of it is written.
        """
        with ExitStack() as stack:
            while True:
                try:
                    stage = stack.enter_context(staged(self.folded(), output, folder, step))
                except Overflow as overflow:
                    self.ban(overflow)
                    continue
                break
            yield stage

    def check(self) -> None:
        """Compute every new tensor once, to see that all of them fit."""
        while True:
            edits = plan_edits(self.lifted, self.plan)
            try:
                for new in (*edits.replaced.values(), *edits.born.values()):
                    new.compute()
            except Overflow as overflow:
                self.ban(overflow)
                continue
            return


def prepare(model: OnnxModel, inputs: Pins, *, clip: ClipMode) -> Folding:
    """Read, lift and plan; bodies of control flow are folded at once, in `model`."""
    analysis = analyse(model, inputs)
    prepare_body = partial(prepare, inputs=None, clip=clip)
    inside = fold_bodies(model, analysis, prepare_body)
    if inside.changed:
        analysis = analyse(model, inputs)
    if model.outside is None and fold_functions(model, analysis, prepare_body, inside):
        analysis = analyse(model, inputs)
    network, shapes, constants = analysis.network, analysis.shapes, analysis.constants
    lifted = lift(network, constants, shapes)
    plan = decide(lifted, clip, {})
    if plan.kept and any(getattr(op.role, "tie", None) is not None for op in lifted.graph.ops):
        # One weight may not serve all its readers: see whether weights of their own do better.
        alone = lift(network, constants, shapes, ties=False)
        better = decide(alone, clip, {})
        if len(better.removed) > len(plan.removed):
            lifted, plan = alone, better
    return Folding(model, shapes, lifted, clip, {}, plan, inside)


def analyse(model: OnnxModel, inputs: Pins) -> Analysis:
    """Look at the graph, and find the shapes of all values."""
    network = read_network(model.name, model.proto)
    shapes = choose_inputs(network, inputs)
    if model.outside is not None:
        network.captured |= model.outside.pinned
        network.taken = model.outside.taken
        shapes = shapes.seen_from_inside(model.outside.shapes)
    constants = find_constants(network, model.bulk, shapes)
    infer(network, shapes, constants.value)
    if inputs and shapes.count > 1:
        given = shapes.given_alone()
        constants_given = find_constants(network, model.bulk, given)
        infer(network, given, constants_given.value)
        if len(given.values[0]) > len(shapes.values[0]):  # no other shapes go through the network
            return Analysis(network, given, constants_given)
    return Analysis(network, shapes, constants)


def decide(lifted: Lifted, clip: ClipMode, banned: Mapping[int, Obstacle]) -> Plan:
    """The plan. Single numbers for all channels go only if no BatchNorm has to stay for it."""
    plan = make_plan(lifted.graph, clip=clip, banned=banned)
    if not lifted.scalars or not (plan.kept.keys() - lifted.scalars):
        return plan
    aside = dict.fromkeys(lifted.scalars, Obstacle(Reason.BRANCHES, None))
    without = make_plan(lifted.graph, clip=clip, banned={**aside, **banned})
    if (without.removed.keys() - lifted.scalars) - plan.removed.keys():
        return without
    return plan


def affine_items(lifted: Lifted, plan: Plan) -> list[Item]:
    """What became of each affine step that somebody would ask about."""
    items = []
    for number, op in enumerate(lifted.graph.ops):
        role = op.role
        if not isinstance(role, g.AffineStep):
            continue
        outcome: Removed | Kept
        if number in lifted.scalars:
            continue
        if number in plan.removed:
            outcome = Removed(plan.removed[number])
        elif number in plan.kept:
            obstacle = plan.kept[number]
            detail = role.refusal[1] if role.refusal else None
            outcome = Kept(obstacle.reason, obstacle.blocker, detail)
        else:
            continue
        items.append(Item(op.name, role.kind, role.channels, 1, outcome))
    return items


def fold_model(model: Any, inputs: Pins, *, clip: ClipMode) -> tuple[Any, FoldReport]:
    """See `bnfold.fold`: a ModelProto or an onnx_ir.Model, and the same comes back."""
    if isinstance(model, ModelProto):
        folding = prepare(read_proto(model), inputs, clip=clip)
        while True:
            try:
                return to_proto(folding.folded()), folding.report
            except Overflow as overflow:
                folding.ban(overflow)
    from bnfold.frontends.onnx import ir

    return ir.fold_model(model, inputs, clip=clip)


def fold_file(path: Path, output: Path, inputs: Pins, *, clip: ClipMode, force: bool) -> FoldReport:
    """See `bnfold.fold`: file to file."""
    check_target(path, output, force=force)
    model = read_file(path)
    check_data_target(model, output, force=force)
    folding = prepare(model, inputs, clip=clip)
    with folding.staged(output, output.parent) as stage:
        stage.move_to(output, force=force)
    return folding.report


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
    if not model.external:
        return
    data = output.with_name(data_name(output.name))
    read = {bulk.path for bulk in model.bulk.values() if isinstance(bulk, FileBulk)}
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


def inspect_model(model: Any, inputs: Pins, *, clip: ClipMode) -> FoldReport:
    """See `bnfold.inspect`."""
    if isinstance(model, ModelProto):
        source = read_proto(model)
    elif isinstance(model, str | Path) or hasattr(model, "__fspath__"):
        source = read_file(Path(model))
    else:
        from bnfold.frontends.onnx import ir

        source = ir.read_model(model)
    folding = prepare(source, inputs, clip=clip)
    folding.check()
    return folding.report
