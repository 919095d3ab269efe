"""Fold and inspect exported programs (torch.export): the graph is read and rewritten.

Every op is a node here, so functional BatchNorm and arithmetic with constants per channel can go
too, and every activation has room for bounds of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold.core.fitting import Bans
from bnfold.core.modes import ClipMode
from bnfold.core.reasons import Reason
from bnfold.errors import ExampleInputError
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.decide import (
    UNCHANGED,
    Decided,
    affine_items,
    cannot_run,
    decide_on,
    depth,
    proven_report,
)
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.ops import op_name
from bnfold.frontends.torch.read_program import (
    lifted_tensors,
    node_names,
    read_program,
    user_inputs,
)
from bnfold.frontends.torch.rewrite import rewrite
from bnfold.frontends.torch.sizes import other_sizes
from bnfold.network import draw
from bnfold.outcomes import Item, Kept
from bnfold.report import FoldReport


def fold_program(
    program: ExportedProgram, *, clip: ClipMode, verify: bool = True
) -> tuple[ExportedProgram, FoldReport]:
    """See `bnfold.fold`."""
    decided = _decide(program, clip)
    if not verify:
        return rewrite(program, decided), _report(program, decided)
    if not decided.plan.removed:
        return rewrite(program, decided), replace(_report(program, decided), unverified=UNCHANGED)
    from bnfold.frontends.torch import prove
    from bnfold.frontends.torch.course import Call

    args, kwargs = _example(program)
    leaves = pytree.tree_leaves((args, kwargs))
    layers = depth(decided.recording)
    try:
        proof = prove.start(
            "the program",
            program,
            [Call(args, kwargs)],
            layers,
            shapes=other_sizes(program, leaves),
        )
    except ExampleInputError as error:
        return rewrite(program, decided), replace(
            _report(program, decided), unverified=cannot_run(error)
        )

    whole = decided

    def attempt(bans: Bans) -> ExportedProgram:
        nonlocal decided
        if bans or decided is not whole:
            decided = decide_on(decided.recording, decided.lifted, clip, bans)
        return rewrite(program, decided)

    groups = decided.lifted.graph.affine_groups()
    folded, found = prove.proven(proof, decided.plan, groups, attempt)
    report = _report(program, decided)
    return folded, proven_report(report, found.verdict, found.parted)


def _example(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as the program is called with them."""
    leaves = list(user_inputs(program).values())
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def inspect_program(program: ExportedProgram, *, clip: ClipMode) -> FoldReport:
    """See `bnfold.inspect`."""
    return _report(program, _decide(program, clip))


def _report(program: ExportedProgram, decided: Decided) -> FoldReport:
    items = [*affine_items(decided.lifted, decided.plan), *_inside(program)]
    clips = tuple(decided.lifted.graph.ops[number].name for number in decided.plan.clip)
    network = draw(decided.lifted.graph, decided.plan, [item.name for item in items])
    return FoldReport(tuple(items), clips, (), {"torch": torch.__version__}, network)


def _inside(program: ExportedProgram) -> list[Item]:
    """The BatchNorms in the bodies of higher-order ops, such as a cond or an autocast region."""
    outcome = Kept(Reason.MODULE_DOES_MORE, None, "it is in the body of a higher-order op")
    return [
        Item(name, "batch_norm", int(node.args[0].meta["val"].shape[1]), 1, outcome)
        for path, body in program.graph_module.named_modules()
        if path and isinstance(body, fx.GraphModule)
        for node, name in node_names(body.graph).items()
        if node.op == "call_function" and is_batch_norm(op_name(node.target))
        if isinstance(node.args[0], fx.Node) and "val" in node.args[0].meta
    ]


def _decide(program: ExportedProgram, clip: ClipMode) -> Decided:
    tensors = lifted_tensors(program)
    recording = read_program(program, tensors)
    lifted = lift(recording)
    return decide_on(recording, lifted, clip)
