"""A model on its way to be folded: plan, apply, and plan again where a weight would overflow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from bnfold._storage import Weights, rounding_note
from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.fitting import Bans, Fitting
from bnfold.core.modes import ClipMode
from bnfold.core.plan import Plan, make_plan
from bnfold.core.reasons import Reason
from bnfold.core.rescaling import PlanRescalings, Rescaling, in_turn
from bnfold.frontends.merge_report import Merging, passed_on, told_in_turn, went_into
from bnfold.frontends.onnx.apply import edits_of
from bnfold.frontends.onnx.edits import Edits
from bnfold.frontends.onnx.join import join
from bnfold.frontends.onnx.narrow import HALF
from bnfold.frontends.onnx.nodes import MALFORMED
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.rewrite import rewrite
from bnfold.frontends.onnx.shapes import Shapes
from bnfold.frontends.onnx.sites import AffineSite, ConstantSite, Lifted
from bnfold.frontends.onnx.tensors import numpy_dtype
from bnfold.frontends.onnx.write import Staged, staged, to_proto
from bnfold.frontends.outcomes import outcomes, reported
from bnfold.outcomes import Item
from bnfold.report import FoldReport


@dataclass(slots=True)
class InnerFolds:
    """What was folded in the bodies of a graph, for the report."""

    items: list[Item] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    scalars: int = 0
    """How many steps with a single number went."""
    rounded: list[int] = field(default_factory=list)
    """Dtypes of the constants that were rounded to less than they are computed with in."""
    changed: bool = False
    """Whether the model is another one now."""


@dataclass(slots=True)
class Folding:
    """A model and how it is going to be folded; overflow may still change the plan."""

    model: OnnxModel
    shapes: Shapes
    lifted: Lifted
    fitting: Fitting
    inside: InnerFolds
    """What was done in the bodies of control flow; they are folded already."""
    weights: Weights = "stored"
    merging: Merging = field(default_factory=Merging)
    """What was merged in `model` before."""
    earlier: Folding | None = None
    """The fold that `model` comes of, where that left something to merge or to fold."""
    known: Collection[str] | None = None
    """The initializers of the model that was given, if it shared weights."""

    @property
    def plan(self) -> Plan:
        """What is decided so far."""
        return self.fitting.plan

    @property
    def kept(self) -> int:
        """How many steps stay that somebody would ask about."""
        return len(self.plan.kept.keys() - self.lifted.scalars)

    @property
    def scalars_gone(self) -> int:
        """How many steps with a single number go, in bodies too."""
        before = self.inside.scalars if self.earlier is None else self.earlier.scalars_gone
        return len(self.aside & self.plan.removed.keys()) + before

    @property
    def aside(self) -> set[int]:
        """The steps with a single number, or that had one before an earlier fold."""
        if self.earlier is None:
            return self.lifted.scalars
        names = {self.earlier.lifted.graph.ops[number].name for number in self.earlier.aside}
        former = self.earlier.renamed
        steps = {
            number
            for number, op in enumerate(self.lifted.graph.ops)
            if former.get(op.name, op.name) in names
            and isinstance(op.role, g.AffineStep | g.RefusedStep)
        }
        return self.lifted.scalars | steps

    @property
    def renamed(self) -> dict[str, str]:
        """Nodes without a name are called by their output, which may be that of a removed step.

        What they are called in the folded model, and in this one.
        """
        network, sites = self.lifted.network, self.lifted.sites
        removed = {number: sites[number] for number in self.plan.removed}
        sources = {s.output: s.source for s in removed.values() if isinstance(s, AffineSite)}
        renamed = {}
        for output in filter(network.is_pinned, sources):
            root = output
            while root in sources:
                root = sources[root]
            if root in network.makers and network.makers[root].name == root:
                renamed[output] = root
        return renamed

    def _former(self, name: str) -> str:
        """What an op was called in the model that was given."""
        if self.earlier is None:
            return name
        return self.earlier.called(name)

    def called(self, name: str) -> str:
        """The same of an op of the folded model."""
        return self._former(self.renamed.get(name, name))

    @property
    def gone(self) -> list[str]:
        """The names of all steps that go, as they were in the model that was given."""
        if self.earlier is not None:
            return [*self.earlier.gone, *self._own]
        return [*self._own, *(item.name for item in self.inside.items if item.is_removed)]

    @property
    def late(self) -> list[str]:
        """Those of them that went from what an earlier fold had left."""
        return [] if self.earlier is None else [*self.earlier.late, *self._own]

    @property
    def _own(self) -> list[str]:
        return [self._former(self.lifted.graph.ops[number].name) for number in self.plan.removed]

    @property
    def rounded(self) -> list[int]:
        """The dtypes of the constants that are rounded to less than they are computed with in."""
        before = self.inside.rounded if self.earlier is None else self.earlier.rounded
        dtypes = self.shapes.dtypes
        constants = (*self.lifted.network.initializers, *self.lifted.constants.nodes)
        if not any(dtypes.get(name) in HALF for name in constants):
            return before
        return [*self._edits().rounded.values(), *before]

    def _edits(self) -> Edits:
        return edits_of(self.lifted, self.plan, self.weights)

    @property
    def changes(self) -> bool:
        """Whether anything goes, here or in bodies and functions."""
        report = self.report
        return bool(report.removed or report.merged or self.scalars_gone or self.inside.changed)

    @property
    def rescalings(self) -> dict[str, Rescaling]:
        """How each value is stored now, by its name."""
        rescalings = PlanRescalings(self.plan, is_rounded=bool(self.merging))
        own = {name: rescalings.of(tensor) for name, tensor in self.lifted.tensors.items()}
        return own if self.earlier is None else in_turn(self.earlier.rescalings, own)

    @property
    def report(self) -> FoldReport:
        """What the plan does, and what was done before."""
        foldings = self._in_turn()
        reports = [folding._own_report() for folding in foldings]
        first = foldings[0]
        graph = first.merging.graph if first.merging.graph.ops else first.lifted.graph
        report = told_in_turn(graph, reports)
        items = passed_on(report.items, _later(foldings[1:]))
        return replace(
            report,
            items=(*items, *self.inside.items),
            clips=(*report.clips, *self.inside.clips),
            notes=self._notes(),
        )

    def _in_turn(self) -> list[Folding]:
        return [*([] if self.earlier is None else self.earlier._in_turn()), self]

    def _own_report(self) -> FoldReport:
        items = outcomes(self.lifted.graph, self.plan, aside=self.aside)
        items = [replace(item, name=self._former(item.name)) for item in items]
        versions = {"onnx": onnx.__version__}
        return self.merging.told(reported(self.lifted.graph, self.plan, items, versions))

    def _notes(self) -> tuple[str, ...]:
        gone = self.scalars_gone
        malformed = [n for n in self.lifted.network.nodes if n.op.startswith(f"{MALFORMED}::")]
        notes = []
        if self.shapes.for_given_only:
            notes.append(
                "The network takes no other shapes, or none that could be followed: what was"
                " decided holds for the given shapes only."
            )
        if self.shapes.has_guesses and self.shapes.blind and self.kept:
            notes.append(
                "Not all shapes are known: with those of the inputs (--input, or inputs={...}) more"
                " may go."
            )
        if gone:
            notes.append(
                "1 further step that scales or shifts by a single number went too."
                if gone == 1
                else f"{gone} further steps that scale or shift by a single number went too."
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
        if rounded := self.rounded:
            notes.append(rounding_note(len(rounded), numpy_dtype(rounded[0]).name))
        return tuple(notes)

    def rewritten(self) -> OnnxModel:
        """The model with all edits, large tensors still to be computed."""
        return self.fitting.attempt(lambda plan: rewrite(self.model, self.lifted, self._edits()))

    def folded(self) -> OnnxModel:
        """The folded model: the same, with equal new weights as one where weights were shared."""
        model = self.rewritten()
        if self.known is not None:
            join(model, self.known)
        return model

    def proto(self) -> ModelProto:
        """The folded model with its tensors."""
        return self.fitting.attempt(lambda plan: to_proto(self.folded()))

    @contextmanager
    def staged(
        self,
        output: Path,
        folder: Path,
        step: Callable[[float], None] = lambda part: None,
        *,
        has_data: bool = False,
    ) -> Iterator[Staged]:
        """The folded model, written inside a folder, to be moved to its place.

        `step` is told which part of it is written; with `has_data` weights are external data.
        """
        with ExitStack() as stack:
            yield self.fitting.attempt(
                lambda plan: stack.enter_context(
                    staged(self.folded(), output, folder, step, has_data=has_data)
                )
            )

    def check(self) -> None:
        """Compute every new tensor once, to see that all of them fit."""
        self.fitting.attempt(lambda plan: self._edits().compute())


def decide(lifted: Lifted, clip: ClipMode, banned: Bans) -> Plan:
    """The plan. Single numbers for all channels go only if no BatchNorm has to stay for it."""
    plan = make_plan(lifted.graph, clip=clip, banned=banned)
    if not lifted.scalars or not (plan.kept.keys() - lifted.scalars):
        return plan
    aside = dict.fromkeys(lifted.scalars, Obstacle(Reason.BRANCHES, None))
    without = make_plan(lifted.graph, clip=clip, banned={**aside, **banned})
    if (without.removed.keys() - lifted.scalars) - plan.removed.keys():
        return without
    return plan


def is_spread(lifted: Lifted, plan: Plan) -> bool:
    """Whether a step with a single number gets one per channel: another fold may remove it."""
    edits = (edit for number, edit in plan.affine.items() if number in lifted.scalars)
    return any(np.ptp(edit.scale) != 0.0 or np.ptp(edit.shift) != 0.0 for edit in edits)


def has_bare_constants(lifted: Lifted, plan: Plan) -> bool:
    """Whether a step goes from behind a constant: what reads that may be a step itself now."""
    ops = lifted.graph.ops
    read = {ops[number].inputs[0] for number in plan.removed}
    return any(
        isinstance(site, ConstantSite) and ops[number].outputs[0] in read
        for number, site in lifted.sites.items()
    )


def _later(folds: Sequence[Folding]) -> dict[str, tuple[str, ...]]:
    """What took in the steps that these folds removed, and the ops they merged, by their names."""
    gone: dict[str, tuple[str, ...]] = {}
    for folding in folds:
        ops = folding.lifted.graph.ops
        gone |= {ops[number].name: into for number, into in folding.plan.removed.items()}
        gone |= went_into(folding.merging.merged)
    return gone


def affine_items(lifted: Lifted, plan: Plan) -> list[Item]:
    """What became of each affine step that somebody would ask about."""
    return outcomes(lifted.graph, plan, aside=lifted.scalars)
