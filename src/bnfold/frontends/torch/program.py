"""Fold and inspect exported programs (torch.export): the graph is read and rewritten.

Every op is a node here, so functional BatchNorm and arithmetic with constants per channel can go
too, and every activation has room for bounds of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.core.fitting import Bans
from bnfold.core.fold_again import may_fold_again
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.core.reasons import Reason
from bnfold.errors import ExampleInputError
from bnfold.frontend import Request
from bnfold.frontends.merge_report import Merging, told_in_turn
from bnfold.frontends.outcomes import reported
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.decide import Decided, affine_items, decide_on, depth, not_run
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lifter import Lifted
from bnfold.frontends.torch.merge_program import are_left, merges_of
from bnfold.frontends.torch.ops import op_name
from bnfold.frontends.torch.program_sizes import other_sizes
from bnfold.frontends.torch.read_program import (
    lifted_tensors,
    node_names,
    read_program,
    user_inputs,
)
from bnfold.frontends.torch.recording import Recording
from bnfold.frontends.torch.rewrite import rewrite
from bnfold.frontends.torch.stored_weights import with_weights_stored
from bnfold.outcomes import Item, Kept
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.frontends.torch.prove import Proof


@dataclass(frozen=True, slots=True)
class _Work:
    """A program that was read and decided on, after merging if anything was merged."""

    program: ExportedProgram
    """What is rewritten."""
    decided: Decided
    merging: Merging
    layers: int
    """How many ops the program ran as it came."""
    earlier: _Work | None = None
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


def fold_program(program: ExportedProgram, request: Request) -> tuple[ExportedProgram, FoldReport]:
    """See `bnfold.fold`."""
    clip = request.clip
    work = _work(program, clip, request.merge)
    if not request.verify:
        return rewrite(work.program, work.decided), _report(work)
    if not work.changes:
        return rewrite(program, work.decided), not_run(_report(work))
    from bnfold.frontends.torch import prove
    from bnfold.frontends.torch.proof_calls import Call

    args, kwargs = _example(program)
    leaves = pytree.tree_leaves((args, kwargs))
    try:
        proof = prove.start(
            "the program",
            program,
            [Call(args, kwargs)],
            work.layers,
            shapes=other_sizes(program, leaves),
        )
    except ExampleInputError as error:
        return rewrite(work.program, work.decided), not_run(_report(work), error)
    if not work.is_plain:
        folded = rewrite(work.program, work.decided)
        verdict = proof.check(folded)
        if verdict.equal:
            return folded, replace(_report(work), verdict=verdict)
        work = _round(program, _read(program), clip, "never")
    return _proven(work, clip, proof)


def _proven(work: _Work, clip: ClipMode, proof: Proof) -> tuple[ExportedProgram, FoldReport]:
    """The fold of a program in which nothing is merged, as far as it can be proven."""
    from bnfold.frontends.torch import prove

    whole = decided = work.decided

    def attempt(bans: Bans) -> ExportedProgram:
        nonlocal decided
        if bans or decided is not whole:
            decided = decide_on(decided.recording, decided.lifted, clip, bans)
        return rewrite(work.program, decided)

    groups = decided.lifted.graph.affine_groups()
    folded, result = prove.proven(proof, decided.plan, groups, attempt)
    return folded, result.told(_report(replace(work, decided=decided)))


def _example(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as the program is called with them."""
    leaves = list(user_inputs(program).values())
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def inspect_program(program: ExportedProgram, request: Request) -> FoldReport:
    """See `bnfold.inspect`."""
    return _report(_work(program, request.clip, request.merge))


def _report(work: _Work) -> FoldReport:
    folds = [work]
    while folds[0].earlier is not None:
        folds.insert(0, folds[0].earlier)
    return told_in_turn(folds[0].merging.graph, [_own_report(fold) for fold in folds])


def _own_report(work: _Work) -> FoldReport:
    decided = work.decided
    items = [*affine_items(decided.lifted, decided.plan), *_inside(work.program)]
    versions = {"torch": torch.__version__}
    return work.merging.told(reported(decided.lifted.graph, decided.plan, items, versions))


def _inside(program: ExportedProgram) -> list[Item]:
    """The BatchNorms in the bodies of higher-order ops, such as a cond or an autocast region."""
    outcome = Kept(Reason.MODULE_DOES_MORE, None, _IN_A_BODY)
    return [
        Item(name, "batch_norm", int(node.args[0].meta["val"].shape[1]), 1, outcome)
        for path, body in program.graph_module.named_modules()
        if path and isinstance(body, fx.GraphModule)
        for node, name in node_names(body.graph).items()
        if node.op == "call_function" and is_batch_norm(op_name(node.target))
        if isinstance(node.args[0], fx.Node) and "val" in node.args[0].meta
    ]


_IN_A_BODY = (
    "it is in the body of a higher-order op: where that is a no_grad or an autocast region,"
    " program.run_decompositions({}) makes plain ops of it"
)


def _work(program: ExportedProgram, clip: ClipMode, merge: MergeMode) -> _Work:
    """The program merged and planned; with weights stored where more goes thanks to that."""
    plain = _read(program)
    work = _rounds(program, plain, clip, merge)
    recording, _ = plain
    stored = with_weights_stored(program, recording.written)
    if stored is None:
        return work
    later = _rounds(stored, _read(stored), clip, merge)
    return replace(later, layers=work.layers, is_stored=True) if later.gone > work.gone else work


def _rounds(program: ExportedProgram, plain: Reading, clip: ClipMode, merge: MergeMode) -> _Work:
    """The program merged and planned, until there is nothing left to merge or to remove."""
    work = _round(program, plain, clip, merge)
    while _is_another_due(work, merge):
        made = rewrite(work.program, work.decided)
        later = _round(made, _read(made), clip, merge)
        if not later.changes:
            break
        work = replace(later, layers=work.layers, earlier=work)
    return work


def _is_another_due(work: _Work, merge: MergeMode) -> bool:
    """Whether there may be more to merge, or to remove, in what the fold makes."""
    if may_fold_again(work.decided.lifted.graph, work.decided.plan):
        return True
    is_merged = bool(work.merging)
    return merge == "auto" and are_left(work.program, work.decided, is_merged=is_merged)


def _round(program: ExportedProgram, plain: Reading, clip: ClipMode, merge: MergeMode) -> _Work:
    """The program, as it was read, with as much merged as lets the fewest steps stay."""
    layers = depth(plain[0])
    best: _Work | None = None
    for candidate, merging in (
        merges_of(program, *plain) if merge == "auto" else [(program, Merging())]
    ):
        try:
            recording, lifted = _read(candidate) if merging else plain
        except ExampleInputError:  # a view of what lies in memory in another way now
            continue
        work = _Work(candidate, decide_on(recording, lifted, clip), merging, layers)
        if best is None or len(work.decided.plan.kept) < len(best.decided.plan.kept):
            best = work
        if not best.decided.plan.kept:
            break
    assert best is not None
    return best


Reading = tuple[Recording, Lifted]


def _read(program: ExportedProgram) -> Reading:
    recording = read_program(program, lifted_tensors(program))
    return recording, lift(recording)
