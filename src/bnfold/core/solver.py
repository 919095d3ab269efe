"""Choose how every channel is stored so that as many affine steps as possible are superfluous.

First the laws of all ops, with every affine step kept; they cannot conflict. Then each step, in
the order in which it runs, is tried for removal,

    s_x = a * s_y          t_y = a * t_x - b

and a conflict rolls back and is recorded. Then every activation is asked to keep its bounds.
Last, `choose` gives values to what is still free.

A step that would keep its factors or its summands, as a mere product does, takes little of what
went before it. Where one stays, all is done again with such steps tried first: those in front, as
they stay, take them in. What removes more counts.

If steps stay that are part of a sum which sees one tensor twice, all of it is done again with the
law of `shortcut_law` for such sums, and the better of the two solutions counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bnfold.core import fixed_summands, shortcuts
from bnfold.core import graph as g
from bnfold.core.activations import ask_all_plain
from bnfold.core.blame import Obstacle
from bnfold.core.choose import choose, out_of_range, overgrown
from bnfold.core.clip_price import Market, TooDear, clip_costs, elements
from bnfold.core.forest import Conflict
from bnfold.core.laws import bind
from bnfold.core.modes import ClipMode
from bnfold.core.reasons import Reason
from bnfold.core.removal import (
    Options,
    Restart,
    Solution,
    groups_left,
    keep,
    known_refusal,
    needs_readers,
    trial,
    try_group,
    try_groups,
)
from bnfold.core.shortcut_law import is_overgrown, prefer_no_additions
from bnfold.core.shortcut_trial import close_sums, try_shortcut
from bnfold.core.shortcuts import Shortcut

_MOST_TRIED = 8
"""So many shortcuts are tried one by one where not all of them go together."""


def solve(
    graph: g.Graph,
    *,
    clip: ClipMode = "auto",
    banned: Mapping[int, Obstacle] | None = None,
) -> Solution:
    """Decide which affine steps go, and how everything is stored.

    `clip` says whether an activation may get bounds per channel: always, never, or where that
    costs less than it saves. `banned` steps stay, for the reason given.
    """
    options = Options(clip, dict(banned or {}))
    solution = _within_range(graph, options)
    if any(graph.step(number).is_stiff for number in solution.kept):
        other = replace(options, stiff_first=True)
        better = _within_range(graph, other)
        if len(better.removed) > len(solution.removed):
            options, solution = other, better
    options, solution = _with_scales(graph, options, solution)
    return _with_shortcuts(graph, options, solution)


def _with_scales(graph: g.Graph, options: Options, plain: Solution) -> tuple[Options, Solution]:
    """Scales for what has a constant added that stays, if more goes with them."""
    numbers = fixed_summands.of(plain.binding) if plain.kept else []
    banned = dict(options.banned)
    while numbers:
        free = replace(options, banned=banned, given_scales=dict.fromkeys(numbers))
        hoped = _within_range(graph, free)
        if len(hoped.removed) <= len(plain.removed):
            break
        known = replace(options, given_scales=fixed_summands.scales(hoped, numbers))
        try:
            better = _within_range(graph, known)
        except Conflict:  # what stays after all asks for other scales
            break
        if len(better.removed) > len(plain.removed):
            return known, better
        more = {number: better.kept[number] for number in hoped.removed if number in better.kept}
        if not more:
            break
        banned |= more
    return options, plain


def _within_range(graph: g.Graph, options: Options) -> Solution:
    """A solution without those removals that store something out of its range."""
    while True:
        solution = _settled(graph, options)
        excess = _excess(solution)
        if not excess:
            return solution
        options = _ban(options, solution, excess)


def _ban(options: Options, solution: Solution, steps: Iterable[int]) -> Options:
    obstacle = Obstacle(Reason.SCALE_RANGE, None)
    groups = solution.binding.groups
    more = {number: obstacle for step in steps for number in groups[step]}
    return replace(options, banned={**options.banned, **more})


def _settled(graph: g.Graph, options: Options) -> Solution:
    """Attempt until nothing is found out late."""
    while True:
        try:
            return _attempt(graph, options)
        except Restart as restart:
            options = restart.options


def _excess(solution: Solution) -> list[int]:
    """The removed steps that store something out of its range."""
    binding, values = solution.binding, solution.values
    return out_of_range(binding, solution.alone(), values) or overgrown(
        binding, solution.alone(), values
    )


def _with_shortcuts(graph: g.Graph, options: Options, plain: Solution) -> Solution:
    """A solution that removes more by taking shortcuts as a whole, if there is one."""
    if not plain.kept:
        return plain
    candidates = tuple(shortcuts.find(plain.binding, options.banned))
    refused: dict[int, Obstacle] = {}
    best = _better(graph, replace(options, shortcuts=candidates), plain, refused)
    if best is None:
        best = _one_by_one(graph, options, plain, candidates)
    for number, obstacle in refused.items():
        could_go = obstacle.reason is Reason.SCALE_RANGE
        if number in best.kept and (could_go or best.kept[number].reason is Reason.BRANCHES):
            best.kept[number] = obstacle
    return best


def _one_by_one(
    graph: g.Graph, options: Options, plain: Solution, candidates: Sequence[Shortcut]
) -> Solution:
    """Where the shortcuts are in each other's way, those that help."""
    best, taken = plain, list[Shortcut]()
    helpful = [
        shortcut for shortcut in candidates if not plain.kept.keys().isdisjoint(shortcut.steps)
    ]
    for shortcut in helpful[:_MOST_TRIED] if len(candidates) > 1 else ():
        if any(not shortcut.sums.isdisjoint(earlier.sums) for earlier in taken):
            continue
        better = _better(graph, replace(options, shortcuts=(*taken, shortcut)), best, {})
        if better is not None:
            best, taken = better, [*taken, shortcut]
    return best


def _better(
    graph: g.Graph, options: Options, than: Solution, refused: dict[int, Obstacle]
) -> Solution | None:
    """A solution with these shortcuts, if it removes more and stores nothing out of range.

    What stands in the way of a step's shortcut is noted in `refused`, and of what went by it.
    """
    while options.shortcuts:
        solution = _settled(graph, options)
        refused.update(solution.refused)
        if len(solution.removed) <= len(than.removed):
            return None
        grown = [
            bound.shortcut
            for bound in solution.shortcuts
            if is_overgrown(solution.binding, bound, solution.values)
        ]
        excess = _excess(solution)
        if not grown and not excess:
            return solution
        gained = [number for number in solution.removed if number in than.kept]
        refused.update(dict.fromkeys(gained, Obstacle(Reason.SCALE_RANGE, None)))
        options = _ban(options.without(*(shortcut.root for shortcut in grown)), solution, excess)
    return None


def _attempt(graph: g.Graph, options: Options) -> Solution:
    costs = clip_costs(graph)
    costly = {number: cost for number, cost in costs.items() if cost > 0}
    plain = {"always": frozenset[int](), "auto": costly.keys(), "never": costs.keys()}[options.clip]
    solution = _remove_all(graph, options, plain)
    if options.clip == "auto" and costly and solution.kept:
        solution = _remove_more(graph, options, solution, costly)
    solution.plain = ask_all_plain(solution, list(solution.binding.clips), options)
    for shortcut in solution.shortcuts:
        prefer_no_additions(solution.binding, shortcut)
    try:
        solution.values = choose(solution.binding, solution.alone(), solution.dead)
    except Conflict:
        # The waiting sums contradict each other: find out which removal made them do so.
        assert not options.careful
        raise Restart(replace(options, careful=True)) from None
    return solution


def _remove_all(graph: g.Graph, options: Options, plain: Iterable[int]) -> Solution:
    """Try every affine step in order; those that need constants at their readers come last."""
    binding = bind(
        graph,
        plain_clips=frozenset(plain),
        kept_from_start=options.kept_from_start,
        open_sums=options.open_sums(),
        given_scales=options.given_scales,
    )
    solution = Solution(binding)
    for shortcut in options.shortcuts:
        try_shortcut(solution, shortcut, options)
    close_sums(solution, options)
    later: list[tuple[int, ...]] = []
    if _remove_together(solution, options):
        return solution
    for group in groups_left(solution, options):
        refusal = known_refusal(binding, group, options)
        if refusal is not None:
            keep(solution, group, refusal, options)
        elif needs_readers(solution, group):
            later.append(group)
        else:
            try_group(solution, group, options)
    try_groups(solution, later, options)
    return solution


def _remove_together(solution: Solution, options: Options) -> bool:
    """Remove all steps in one go if nothing stands in the way of any: the common case, quickly.

    All of them hold together exactly if each, tried after the others, can go.
    """
    binding, system = solution.binding, solution.binding.system
    groups = groups_left(solution, options)
    steps = [number for group in groups for number in group]
    affine = [binding.affine[number] for number in steps if number in binding.affine]
    if options.careful or len(affine) < max(2, len(steps)):
        return False
    if any(known_refusal(binding, group, options) is not None for group in groups):
        return False
    if not all(bound.scale.all() for bound in affine):
        return False
    x, y, a, b = (
        np.concatenate([getattr(bound, part) for bound in affine])
        for part in ("inputs", "outputs", "scale", "shift")
    )
    # Nobody asks for the cause: with a conflict all of it is undone, without one nothing stays.
    cause = system.cause(-1, "", Reason.BRANCHES)
    mark = system.mark()
    try:
        with trial(solution, options):
            system.scale_by(x, y, a, cause)
            system.shift_map(y, x, a, -b, cause)
            system.shorten(mark)
            solution.removed.extend(steps)
    except Conflict:
        return False
    return True


def _remove_more(
    graph: g.Graph, options: Options, first: Solution, costly: Mapping[int, float]
) -> Solution:
    """Without the demand that costly clips stay plain: what else goes, where it pays.

    What `first` removed is removed again; then each remaining step goes if the clips that lose
    their plain bounds by it cost less than the step.
    """
    binding = bind(
        graph,
        kept_from_start=options.kept_from_start,
        open_sums=options.open_sums(),
        given_scales=options.given_scales,
    )
    solution = Solution(binding)
    for bound in first.shortcuts:
        try_shortcut(solution, bound.shortcut, options)
    stay = {
        number: why
        for number, why in first.kept.items()
        if number in options.banned or graph.step(number).refusal is not None
    }
    for number, obstacle in stay.items():
        keep(solution, (number,), obstacle, options)
    groups, gone = binding.groups, set(solution.removed)
    again = [groups[n] for n in first.removed if groups[n][0] == n and n not in gone]
    try_groups(solution, again, options)
    # What is called several times may have no room, after all.
    costly = {number: cost for number, cost in costly.items() if number in binding.clips}
    market = Market(solution, options, costly)
    market.lost = market.look()
    for shortcut in options.shortcuts:
        gain = elements(graph, [n for n in shortcut.steps if n in first.kept])
        try:
            with trial(solution, options):
                if try_shortcut(solution, shortcut, options):
                    market.pay(gain, first.met.get(shortcut.root, frozenset()))
        except TooDear as dear:
            cost = _clip_cost(graph, dear)
            solution.refused.update(dict.fromkeys(shortcut.steps, cost) if cost else {})
    close_sums(solution, options)
    for group in groups_left(solution, options):
        if group[0] not in first.kept or group[0] in stay:
            continue
        try:
            with trial(solution, options):
                if try_group(solution, group, options):
                    market.pay(elements(graph, group), first.met.get(group[0], frozenset()))
        except TooDear as dear:
            # If it could go, what `first` ran into may be gone, but not the cost.
            keep(solution, group, _clip_cost(graph, dear) or first.kept[group[0]], options)
    return solution


def _clip_cost(graph: g.Graph, dear: TooDear) -> Obstacle | None:
    return Obstacle(Reason.CLIP_COST, graph.ops[min(dear.clips)].name) if dear.clips else None
