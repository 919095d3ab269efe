"""Fold and inspect exported programs (torch.export): the graph is read and rewritten.

Every op is a node here, so functional BatchNorm and arithmetic with constants per channel can go
too, and every activation has room for bounds of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.core.fitting import Bans
from bnfold.core.modes import ClipMode
from bnfold.core.reasons import Reason
from bnfold.errors import ExampleInputError
from bnfold.frontend import Request
from bnfold.frontends.merge_report import told_in_turn
from bnfold.frontends.outcomes import reported
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.decide import affine_items, decide_on, not_run
from bnfold.frontends.torch.ops import op_name
from bnfold.frontends.torch.program_sizes import other_sizes
from bnfold.frontends.torch.program_work import Work, one_round, read_plainly, work_on
from bnfold.frontends.torch.read_program import (
    node_names,
    user_inputs,
)
from bnfold.frontends.torch.rewrite import rewrite
from bnfold.outcomes import Item, Kept
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.frontends.torch.prove import Proof


def fold_program(program: ExportedProgram, request: Request) -> tuple[ExportedProgram, FoldReport]:
    """See `bnfold.fold`."""
    clip = request.clip
    work = work_on(program, clip, request.merge)
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
        work = one_round(program, read_plainly(program), clip, "never")
    return _proven(work, clip, proof)


def _proven(work: Work, clip: ClipMode, proof: Proof) -> tuple[ExportedProgram, FoldReport]:
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
    return _report(work_on(program, request.clip, request.merge))


def _report(work: Work) -> FoldReport:
    folds = [work]
    while folds[0].earlier is not None:
        folds.insert(0, folds[0].earlier)
    return told_in_turn(folds[0].merging.graph, [_own_report(fold) for fold in folds])


def _own_report(work: Work) -> FoldReport:
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
