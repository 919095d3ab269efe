"""Fold and inspect a Caffe network: read, lift, plan, name, write, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnfold._output_files import check_place, is_same_file
from bnfold._storage import Weights, rounding_note
from bnfold.core.fitting import Bans, Fitting, MustStay, Stays, bans_of
from bnfold.core.fold_again import may_fold_again
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.core.plan import Plan, make_plan
from bnfold.errors import ModelUnreadableError, UsageError
from bnfold.frontends.caffe.apply import NewArrays, new_arrays
from bnfold.frontends.caffe.caffemodel import Caffemodel, open_caffemodel, read_caffemodel
from bnfold.frontends.caffe.edit_text import edit_text
from bnfold.frontends.caffe.lift import lift
from bnfold.frontends.caffe.lifter import Lifted
from bnfold.frontends.caffe.merge import MergedNet, are_left, merge_layers
from bnfold.frontends.caffe.net import Net
from bnfold.frontends.caffe.prototxt import MAX_BYTES, read_text
from bnfold.frontends.caffe.read import is_for_training, read_net
from bnfold.frontends.caffe.rewire import NameTaken, Wiring, rewire
from bnfold.frontends.caffe.shapes import infer
from bnfold.frontends.caffe.text_tree import Document, encode
from bnfold.frontends.caffe.write import rewrite, write_pair
from bnfold.frontends.merge_report import Merging, told_in_turn
from bnfold.frontends.outcomes import outcomes, reported
from bnfold.report import FoldReport

_HAS_WEIGHTS = {"BatchNorm", "Convolution", "Deconvolution", "InnerProduct"}


@dataclass(slots=True)
class Decided:
    """Everything that is known before anything is written."""

    net: Net
    lifted: Lifted
    plan: Plan
    new: NewArrays
    wiring: Wiring

    @property
    def text(self) -> bytes:
        """The prototxt."""
        return encode(edit_text(self.net, self.new.removed, self.wiring, self.new.biased))

    def weights(self) -> Iterator[Any]:
        """The caffemodel, piece by piece."""
        return rewrite(self.net.weights, self.new.changes)

    def read(self) -> Net:
        """The network that would be written."""
        weights = read_caffemodel(b"".join(self.weights()), self.net.weights.name)
        net = read_net(read_text(self.text, self.net.name), weights)
        infer(net)
        return net


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded network, not written yet."""

    decided: Decided
    original: Net
    """What was read."""
    is_merged: bool = False
    """Whether layers of it were merged."""
    late: Sequence[str] = ()
    """The names of the steps that went from what a fold had left."""

    @property
    def text(self) -> bytes:
        """The prototxt."""
        return self.decided.text

    def weights(self) -> Iterator[Any]:
        """The caffemodel, piece by piece."""
        return self.decided.weights()

    def write(self, network: Path, weights: Path) -> None:
        """Write both files whole, or neither. Raises UsageError."""
        write_pair(network, self.text, weights, self.weights())


def weights_beside(network: Path) -> Path:
    """Where the weights go that belong to a prototxt."""
    return network.with_suffix(".caffemodel")


def check_target(target: Path, sources: tuple[Path, Path], *, force: bool) -> None:
    """Raise UsageError if an output is one of the inputs, or exists and may not be replaced."""
    for path in (target, weights_beside(target) if target.name else target):
        for source in sources:
            if is_same_file(path, source):
                raise UsageError(
                    f"{path} is what is read, and inputs are never written to",
                    "choose another place with -o",
                )
        check_place(path, force=force)


def read_files(network: Path, weights: Path) -> tuple[Document, Caffemodel]:
    """Parse the text and map the weights. Raises ModelUnreadableError."""
    try:
        if network.stat().st_size > MAX_BYTES:
            raise ModelUnreadableError(
                str(network), "too large for a prototxt", "name the .prototxt first"
            )
        content = network.read_bytes()
    except OSError as error:
        raise ModelUnreadableError(
            str(network), error.strerror or str(error), "name a .prototxt"
        ) from error
    return read_text(content, str(network)), open_caffemodel(weights)


def fold_read(
    document: Document,
    weights: Caffemodel,
    *,
    clip: ClipMode,
    phase: str | None,
    merge: MergeMode = "auto",
    storage: Weights = "stored",
    stays: Stays | None = None,
) -> tuple[Folded, FoldReport]:
    """Decide for files that are read. Raises UsageError and ModelUnreadableError."""
    _check_phase(document, phase)
    net = read_net(document, weights)
    _check_match(net)
    infer(net)
    steps = list(merge_and_fold(net, clip, storage, merge=merge, stays=stays))
    is_merged = any(step.merged is not None for step in steps)
    late = [name for step in steps[1:] for name in step.gone]
    return Folded(steps[-1].decided, net, is_merged, late), _report_of(steps, net)


@dataclass(frozen=True, slots=True)
class Round:
    """What was merged, if anything, and the fold of what came of it."""

    merged: MergedNet | None
    decided: Decided
    merging: Merging
    """What was merged, and what was not."""

    @property
    def kept(self) -> int:
        """How many steps stay."""
        items = outcomes(self.decided.lifted.graph, self.decided.plan)
        return sum(not item.is_removed for item in items)

    @property
    def gone(self) -> tuple[str, ...]:
        """The names of the steps that go."""
        return self.decided.lifted.graph.names(self.decided.plan.removed)


def merge_and_fold(
    net: Net,
    clip: ClipMode,
    storage: Weights,
    *,
    merge: MergeMode = "auto",
    stays: Stays | None = None,
) -> Iterator[Round]:
    """Merge and fold, until there is nothing left to; no merge may make a step stay."""
    is_first, stays = True, stays or {}
    while True:
        lifted = lift(net)
        merged, merging = merge_layers(net, lifted) if merge == "auto" else (None, Merging())
        chosen = None
        if merged is not None:
            decided = _decide(merged.net, lift(merged.net), clip, storage, stays)
            chosen = Round(merged, decided, merging)
        if chosen is None or chosen.kept:
            decided = _decide(net, lifted, clip, storage, stays)
            plain = Round(None, decided, replace(merging, merges=()))
            if chosen is None or chosen.kept > plain.kept:
                chosen = plain
        changes = chosen.merged is not None or bool(chosen.decided.plan.removed)
        if is_first or changes:
            yield chosen
        if not changes or not _is_another_due(chosen, merge):
            return
        is_first, net = False, chosen.decided.read()


def _is_another_due(last: Round, merge: MergeMode) -> bool:
    """Whether there may be more to merge, or to remove, in what a round makes."""
    net, lifted, plan = last.decided.net, last.decided.lifted, last.decided.plan
    if may_fold_again(lifted.graph, plan):
        return True
    return merge == "auto" and are_left(net, lifted, plan, is_merged=last.merged is not None)


def _report_of(steps: Sequence[Round], net: Net) -> FoldReport:
    """What all rounds did; the first note is how many layers are left."""
    reports = [step.merging.told(_report(step.decided, net)) for step in steps]
    first = steps[0]
    graph = first.decided.lifted.graph if first.merged is None else first.merging.graph
    whole = told_in_turn(graph, reports)
    notes = dict.fromkeys(note for report in reports for note in report.notes[1:])
    return replace(whole, notes=(reports[-1].notes[0], *notes))


def _check_phase(document: Document, phase: str | None) -> None:
    if phase not in (None, "test"):
        raise UsageError(f"phase={phase!r} is not known", "use 'test', or leave it out")
    if phase is None and is_for_training(document):
        raise UsageError(
            f"{document.name} has layers that are there for training only",
            "fold the deploy.prototxt, or ask for what the TEST phase computes (phase='test',"
            " --phase test)",
        )


def _check_match(net: Net) -> None:
    """Raise ModelUnreadableError if the weights are those of another network."""
    wanted = [layer for layer in net.layers if layer.type in _HAS_WEIGHTS]
    if wanted and all(layer.stored is None for layer in wanted):
        raise ModelUnreadableError(
            net.weights.name,
            f"none of its {len(net.weights.layers)} layers is called like a layer of {net.name}",
            "use the weights that were trained with this network",
        )


def _decide(net: Net, lifted: Lifted, clip: ClipMode, storage: Weights, stays: Stays) -> Decided:
    """Plan, and plan again without the removals that cannot be written."""

    def write(plan: Plan) -> Decided:
        new = new_arrays(net, lifted, plan, weights=storage)
        try:
            return Decided(net, lifted, plan, new, rewire(net, new.removed))
        except NameTaken as taken:
            layers = {number: lifted.sites[number].layer for number in plan.removed}
            last = [number for number, layer in layers.items() if layer is taken.layer]
            raise MustStay(dict.fromkeys(last, taken.obstacle)) from taken

    def decide(bans: Bans) -> Plan:
        return make_plan(lifted.graph, clip=clip, banned=bans)

    return Fitting(decide, bans_of(lifted.graph, stays)).attempt(write)


def _report(decided: Decided, original: Net) -> FoldReport:
    items = outcomes(decided.lifted.graph, decided.plan)
    count = len(original.layers)
    left = len(decided.net.layers) - len(decided.new.removed)
    rounded = decided.new.changes.rounded(decided.net.weights)
    said = [rounding_note(len(rounded), rounded[0])] if rounded else []
    notes = (f"layers: {count} -> {left}", *decided.net.notes, *said)
    return reported(decided.lifted.graph, decided.plan, items, {"numpy": np.__version__}, notes)
