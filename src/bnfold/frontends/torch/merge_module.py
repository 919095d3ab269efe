"""Which linear modules to merge before a fold, so that the class and its forward stay.

One convolution, the carrier, gets the merged kernel; a branch that is merged away begins with a
module that returns nothing (see `nothing`), and what else was merged becomes an identity. Sums stay
Python. What they make then is

    output = a * carrier(x) + b * x

with the b of operands `+ x` that no module makes and that stay. So with W the merged op, all
identities included, the carrier computes (W - b * I) / a, whatever stood behind the sums.

Where a network was read in several runs, a merge has to be the same one in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, varying_axes
from bnfold.core.kernel import Kernel, behind
from bnfold.core.merge import find_merges
from bnfold.core.merge_within import MOST_ROUNDS
from bnfold.core.merged import Merge
from bnfold.frontends.merge_report import Merging
from bnfold.frontends.torch.lifter import Lifted
from bnfold.frontends.torch.merge_run import AllRuns, Run
from bnfold.frontends.torch.merge_walk import Change, UnservedError, Walk
from bnfold.frontends.torch.recording import Recording

NOT_BY_CODE = Freedom(can_go=lambda number: False, shortens_concats=False)
"""What is left where the code does not take a merge, or does something else in another run."""


def changes(
    model: nn.Module,
    recording: Recording,
    lifted: Lifted,
    fixed: frozenset[int],
    *,
    wide: bool = True,
) -> tuple[list[Change], Merging]:
    """What to merge, and what is known of the merges of the first run, none of them carried out.

    Args:
        model: The module.
        recording: Its runs.
        lifted: The same as a graph.
        fixed: The ids of modules that have to stay as they are.
        wide: Whether what nothing is left of goes with all the modules that are around it.
    """
    all_runs = AllRuns(model, recording, lifted, fixed, wide=wide)
    runs = [Run(all_runs, index) for index in range(len(recording.roots))]
    by_run = [_changes_of(run) for run in runs]
    common: dict[int, Change] = {}
    for change in (change for changes in by_run for change in changes):
        ids = {id(module) for module in change.modules}
        if ids & {key for known in common.values() for key in map(id, known.modules)}:
            continue
        alike = [[twin for twin in changes if change.is_like(twin)] for changes in by_run]
        if all(twins or not ids & run.called for run, twins in zip(runs, alike, strict=True)):
            events = frozenset().union(*(twin.events for twins in alike for twin in twins))
            common[id(change.carrier)] = replace(change, events=events)
    if not runs:
        return [], Merging()
    graph = lifted.graph if len(runs) == 1 else runs[0].graph
    is_by_code = bool(by_run[0]) and not common
    freedom = NOT_BY_CODE if is_by_code else runs[0].freedom
    todo = list(common.values())
    seats = {change.merge.carrier: change.stands_at for change in todo}
    return todo, Merging(graph, runs[0].parts, freedom, seats=seats)


def in_groups(model: nn.Module, todo: Sequence[Change]) -> list[list[Change]]:
    """What is merged in one sum, together; what modules of one class do, side by side."""
    groups: dict[Any, list[Change]] = {}
    for change in todo:
        groups.setdefault(tuple(change.merge.sums) or id(change), []).append(change)
    names = {id(module): name for name, module in model.named_modules()}

    def kind(group: list[Change]) -> str:
        around = names.get(id(group[0].carrier), "").rpartition(".")[0]
        return type(model.get_submodule(around)).__qualname__

    return sorted(groups.values(), key=kind)


def told_apart(merging: Merging, taken: Sequence[Change], todo: Sequence[Change]) -> Merging:
    """The merging with these alone: the code is in the way of the others."""
    chosen = [change.merge for change in taken]
    left = [change.merge for change in todo if change not in taken]
    ops = frozenset().union(*({*merge.gone, merge.carrier} for merge in left))
    freedom = replace(merging.freedom, can_go=lambda n: n not in ops and merging.freedom.can_go(n))
    return replace(merging, merges=chosen, freedom=freedom)


def _changes_of(run: Run) -> list[Change]:
    """The merges that modules can be given."""
    todo: list[Change] = []
    for _ in range(MOST_ROUNDS):
        merges = find_merges(run.graph, run.parts, run.freedom)
        todo, size = [], run.fence.size
        for merge in merges:
            served = _served(run, merge)
            if served is not None:
                todo.append(served)
            else:
                _narrow(run, merge)
        if size == run.fence.size:
            break
    return [change for change in todo if change.away or change.identities]


def _narrow(run: Run, merge: Merge) -> None:
    """Leave out of the next round what Python does, or a step of its own, or what the core says."""
    functions = {n for n in {*merge.gone} & run.movable if run.module(n) is None}
    steps = {n for n in merge.gone if _is_branch(run, merge, n)}
    if functions:
        run.fence.banned |= functions
    elif steps and len({*merge.gone, merge.carrier} & run.parts.keys()) > 1:
        run.fence.banned |= steps  # the fold may remove it without
    else:
        run.fence.narrow(run.graph, run.parts, merge)


def _is_branch(run: Run, merge: Merge, number: int) -> bool:
    """Whether an op is an affine step of the source."""
    op = run.graph.ops[number]
    return isinstance(op.role, g.AffineStep) and op.inputs[0] == merge.source


def _extended(run: Run, merge: Merge) -> Merge:
    """With the steps behind a sum that keeps the source itself: the carrier can make up for it.

    Without, they would be folded into the carrier alone, and the source could not follow.
    """
    ops = {*merge.gone, merge.carrier}
    if merge.enters is not None or not any(
        isinstance(run.graph.ops[n].role, g.Sum) and merge.source in run.graph.ops[n].inputs
        for n in ops
    ):
        return merge
    while (number := _step_behind(run, merge)) is not None:
        role = run.graph.ops[number].role
        assert isinstance(role, g.AffineStep)
        merge = replace(
            merge,
            output=run.graph.ops[number].outputs[0],
            gone=merge.gone | {number},
            kernel=partial(_with_step, merge.kernel, role),
        )
    return merge


def _step_behind(run: Run, merge: Merge) -> int | None:
    """The affine module that alone reads what a merge makes."""
    readers = run.readers.get(merge.output, [])
    if len(readers) != 1 or any(tensor == merge.output for tensor, _, _ in run.graph.outputs):
        return None
    role = run.graph.ops[readers[0]].role
    if not isinstance(role, g.AffineStep) or run.all_runs.module(readers[0]) is None:
        return None
    shape = run.graph.shapes[merge.output]
    axis = run.parts[merge.carrier].axis
    fits = set(varying_axes(role, len(shape))) <= {axis} and readers[0] in run.movable
    return readers[0] if fits and role.is_known and _is_finite(role) else None


def _served(run: Run, merge: Merge) -> Change | None:
    """The merge as far as it goes, or without the steps behind it that would cost digits."""
    extended = _extended(run, merge)
    change = _carried(run, extended)
    return _carried(run, merge) if change is None and extended is not merge else change


def _carried(run: Run, merge: Merge) -> Change | None:
    """The merge with the carrier that costs least; None if none can carry it.

    A carrier stands where it stood, or in the place of a step that is a branch: in
    `out = 0; out += conv(x); out += bn(x)` that leaves no sum.
    """
    options = []
    ops = sorted({*merge.gone, merge.carrier})
    branches = [n for n in ops if run.graph.ops[n].inputs[0] == merge.source]
    seats = [n for n in branches if run.is_seat(n)]
    for number in sorted(run.parts.keys() & {*ops}):
        for seat in (number, *(seats if number in branches else ())):
            try:
                walk = Walk(run, merge, number, seat)
            except UnservedError:
                continue
            # Nothing plus a tensor is Python; a tensor plus nothing goes through PyTorch.
            cost = walk.passes, seat != number, _misfit(run, merge, number), -number
            options.append((cost, walk))
    for _, walk in sorted(options, key=lambda option: option[0]):
        change = walk.change()
        if change is not None:
            return change
    return None


def _misfit(run: Run, merge: Merge, number: int) -> bool:
    part = run.parts[number]
    return (part.window, part.groups) != (merge.window, merge.groups)


def _is_finite(role: g.AffineStep) -> bool:
    return bool(np.isfinite(role.scale).all() and np.isfinite(role.shift).all())


def _with_step(kernel: Callable[[], Kernel], role: g.AffineStep) -> Kernel:
    """A kernel, and an affine step behind it."""
    inner = kernel()
    shape = np.broadcast_shapes(role.scale.reshape(-1).shape, inner.bias.shape)
    scale, shift = (np.broadcast_to(c.reshape(-1), shape) for c in (role.scale, role.shift))
    outer = Kernel.affine(scale, shift, len(inner.window.kernel))
    return behind(inner, outer, inner.window)
