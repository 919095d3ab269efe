"""An exported program on its way to be folded: merged and planned, until nothing is left to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from torch.export import ExportedProgram

from bnfold.core.fold_again import may_fold_again
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.core.rescaling import Rescaling, Rescalings, in_turn
from bnfold.errors import ExampleInputError
from bnfold.frontends.merge_report import Merging
from bnfold.frontends.torch.decide import Decided, decide_on, depth
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lifter import Lifted
from bnfold.frontends.torch.merge_program import are_left, merges_of
from bnfold.frontends.torch.read_program import lifted_tensors, read_program
from bnfold.frontends.torch.recording import Recording
from bnfold.frontends.torch.rescalings import changed_by, rescalings_of
from bnfold.frontends.torch.rewrite import rewrite
from bnfold.frontends.torch.stacks import are_bared
from bnfold.frontends.torch.stored_weights import with_weights_stored


@dataclass(frozen=True, slots=True)
class Work:
    """A program that was read and decided on, after merging if anything was merged."""

    program: ExportedProgram
    """What is rewritten."""
    decided: Decided
    merging: Merging
    plain: Reading
    """The program before anything was merged."""
    layers: int
    """How many ops the program ran as it came."""
    earlier: Work | None = None
    """The fold that `program` comes of, where that left something to merge or to remove."""
    is_stored: bool = False
    """Whether weights are stored that were computed in each run."""

    @property
    def is_plain(self) -> bool:
        """Whether it is one fold of the program as it came, with nothing merged."""
        return not (self.merging or self.earlier or self.is_stored)

    @property
    def changes(self) -> bool:
        """Whether the outcome is another program."""
        return bool(self.decided.plan.removed or self.merging or self.earlier)

    @property
    def gone(self) -> int:
        """How many ops go."""
        merged = sum(len(merge.gone) for merge in self.merging.merges)
        earlier = 0 if self.earlier is None else self.earlier.gone
        return len(self.decided.plan.removed) + merged + earlier

    @property
    def rescalings(self) -> dict[str, Rescaling]:
        """How each node's value is stored now, by its name."""
        decided, merging = self.decided, self.merging
        changed = changed_by(merging.merges, merging.graph, *self.plain)
        own = rescalings_of(decided.recording, decided.lifted, decided.plan, changed)
        return own if self.earlier is None else in_turn(self.earlier.rescalings, own)


def work_on(program: ExportedProgram, clip: ClipMode, merge: MergeMode) -> Work:
    """The program merged and planned; with weights stored where more goes thanks to that."""
    plain = read_plainly(program)
    work = _rounds(program, plain, clip, merge)
    recording, _ = plain
    stored = with_weights_stored(program, recording.written)
    if stored is None:
        return work
    later = _rounds(stored, read_plainly(stored), clip, merge)
    return replace(later, layers=work.layers, is_stored=True) if later.gone > work.gone else work


def _rounds(program: ExportedProgram, plain: Reading, clip: ClipMode, merge: MergeMode) -> Work:
    """The program merged and planned, until there is nothing left to merge or to remove."""
    work = one_round(program, plain, clip, merge)
    while _is_another_due(work, merge):
        made = rewrite(work.program, work.decided)
        later = one_round(made, read_plainly(made), clip, merge)
        if not later.changes:
            break
        work = replace(later, layers=work.layers, earlier=work)
    return work


def _is_another_due(work: Work, merge: MergeMode) -> bool:
    """Whether there may be more to merge, or to remove, in what the fold makes."""
    decided = work.decided
    if may_fold_again(decided.lifted.graph, decided.plan):
        return True
    if are_bared(decided.recording, decided.lifted, decided.plan):
        return True
    is_merged = bool(work.merging)
    return merge == "auto" and are_left(work.program, decided, is_merged=is_merged)


def one_round(program: ExportedProgram, plain: Reading, clip: ClipMode, merge: MergeMode) -> Work:
    """The program, as it was read, with as much merged as lets the fewest steps stay."""
    layers = depth(plain[0])
    best: Work | None = None
    for candidate, merging in (
        merges_of(program, *plain) if merge == "auto" else [(program, Merging())]
    ):
        try:
            recording, lifted = read_plainly(candidate) if merging else plain
        except ExampleInputError:  # a view of what lies in memory in another way now
            continue
        work = Work(candidate, decide_on(recording, lifted, clip), merging, plain, layers)
        if best is None or len(work.decided.plan.kept) < len(best.decided.plan.kept):
            best = work
        if not best.decided.plan.kept:
            break
    assert best is not None
    return best


Reading = tuple[Recording, Lifted]


def read_plainly(program: ExportedProgram) -> Reading:
    """What it does, and the same as a graph, before anything is merged."""
    recording = read_program(program, lifted_tensors(program))
    return recording, lift(recording)


def rescalings_of_program(program: ExportedProgram) -> Iterator[Rescalings]:
    """Under each clip mode, with merges and without. Raises BnfoldError where a fold refuses it."""
    for clip in get_args(ClipMode):
        work = work_on(program, clip, "auto")
        yield work.rescalings
        if not work.is_plain:
            yield work_on(program, clip, "never").rescalings
