"""Choose how every channel is stored so that as many affine steps as possible are superfluous.

First the laws of all ops, with every affine step kept; they cannot conflict. Then each step, in
the order in which it runs, is tried for removal,

    s_x = a * s_y          t_y = a * t_x - b

and a conflict rolls back and is recorded. Then every activation is asked to keep its bounds.
Last, `choose` gives values to what is still free.

If steps stay that are part of a sum which sees one tensor twice, all of it is done again with the
law of `shortcut_law` for such sums, and the better of the two solutions counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bnfold.core import constants, shortcuts
from bnfold.core import graph as g
from bnfold.core.binding import Binding, BoundAffine, BoundClip, BoundSum
from bnfold.core.blame import Obstacle, blame
from bnfold.core.choose import Values, choose, out_of_range, overgrown
from bnfold.core.forest import Conflict, IntArray
from bnfold.core.laws import bind, keep_affine, lay_sum, plain_clip
from bnfold.core.reasons import Reason
from bnfold.core.shortcut_law import BoundShortcut, is_overgrown, lay, prefer_no_additions
from bnfold.core.shortcuts import Shortcut
from bnfold.core.sums import solve_waiting
from bnfold.core.system import distinct

ClipMode = Literal["auto", "always", "never"]

_MOST_ASKED = 20_000
"""How often `clip="auto"` asks what an activation would cost: some seconds in all. Each step asks
every one; in a network of thousands of both, later steps stay as `clip="never"` has it."""


_MOST_TRIED = 8
"""So many shortcuts are tried one by one where not all of them go together."""


@dataclass(slots=True)
class Solution:
    """The chosen rescaling of every variable and what it removes."""

    binding: Binding
    removed: list[int] = field(default_factory=list)
    """Numbers of the removed affine steps, in the order of removal."""
    kept: dict[int, Obstacle] = field(default_factory=dict)
    """Why each other step stays, by number."""
    met: dict[int, frozenset[int]] = field(default_factory=dict)
    """By kept step, the clips with plain bounds that its removal ran into."""
    dead: constants.Constants = field(default_factory=constants.Constants)
    """Variables whose value is a constant known to all readers: 1/s = 0, t = -value."""
    zeroed: list[tuple[int, int]] = field(default_factory=list)
    """(linear op, output channel) pairs whose weights become 0."""
    plain: set[int] = field(default_factory=set)
    """Numbers of the clips with room that keep their bounds."""
    values: Values = field(default_factory=Values)
    """s, 1/s and t of every variable."""
    readers: constants.Readers | None = None
    """Who makes and reads each variable, as soon as a zero gamma asks; see `_readers`."""
    seen_through: list[int] = field(default_factory=list)
    """The removed steps that `readers` takes into account."""
    shortcuts: list[BoundShortcut] = field(default_factory=list)
    """The sums whose steps went together, in the order of removal."""
    refused: dict[int, Obstacle] = field(default_factory=dict)
    """By step, what stood in the way of the sum that it is part of."""

    def alone(self) -> list[int]:
        """The removed steps whose own law holds: not those that went with a shortcut."""
        if not self.shortcuts:
            return self.removed
        others = {
            step
            for bound in self.shortcuts
            for step in bound.shortcut.steps
            if step not in bound.shortcut.bound
        }
        return [number for number in self.removed if number not in others]


@dataclass(frozen=True, slots=True)
class _Options:
    clip: ClipMode
    banned: Mapping[int, Obstacle]
    kept_from_start: frozenset[int] = frozenset()
    careful: bool = False
    """Check after each removal that the waiting sums still have a solution."""
    shortcuts: tuple[Shortcut, ...] = ()
    """Sums to try as a whole, outer ones before those inside."""

    def open_sums(self) -> frozenset[int]:
        """The sums whose law depends on what is tried."""
        return frozenset(number for shortcut in self.shortcuts for number in shortcut.sums)

    def without(self, *sums: int) -> _Options:
        """The same, but these sums keep to their plain law."""
        left = tuple(one for one in self.shortcuts if one.sums.isdisjoint(sums))
        return replace(self, shortcuts=left)


class _Restart(Exception):  # noqa: N818  # control flow, not an error
    """What was found out late has to hold from the start."""

    def __init__(self, options: _Options) -> None:
        super().__init__()
        self.options = options


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
    given = options = _Options(clip, dict(banned or {}))
    while True:
        solution = _settled(graph, options)
        excess = _excess(solution)
        if not excess:
            return _with_shortcuts(graph, given, solution)
        options = _ban(options, solution, excess)


def _ban(options: _Options, solution: Solution, steps: Iterable[int]) -> _Options:
    obstacle = Obstacle(Reason.SCALE_RANGE, None)
    groups = solution.binding.groups
    more = {number: obstacle for step in steps for number in groups[step]}
    return replace(options, banned={**options.banned, **more})


def _settled(graph: g.Graph, options: _Options) -> Solution:
    """Attempt until nothing is found out late."""
    while True:
        try:
            return _attempt(graph, options)
        except _Restart as restart:
            options = restart.options


def _excess(solution: Solution) -> list[int]:
    """The removed steps that store something out of its range."""
    binding, values = solution.binding, solution.values
    return out_of_range(binding, solution.alone(), values) or overgrown(
        binding, solution.alone(), values
    )


def _with_shortcuts(graph: g.Graph, options: _Options, plain: Solution) -> Solution:
    """A solution that removes more by taking shortcuts as a whole, if there is one."""
    if not plain.kept:
        return plain
    found = tuple(shortcuts.find(plain.binding, options.banned))
    refused: dict[int, Obstacle] = {}
    best = _better(graph, replace(options, shortcuts=found), plain, refused)
    if best is None:
        best = _one_by_one(graph, options, plain, found)
    for number, obstacle in refused.items():
        if number in best.kept and best.kept[number].reason is Reason.BRANCHES:
            best.kept[number] = obstacle
    return best


def _one_by_one(
    graph: g.Graph, options: _Options, plain: Solution, found: Sequence[Shortcut]
) -> Solution:
    """Where the shortcuts are in each other's way, those that help."""
    best, taken = plain, list[Shortcut]()
    helpful = [one for one in found if not plain.kept.keys().isdisjoint(one.steps)]
    for one in helpful[:_MOST_TRIED] if len(found) > 1 else ():
        if any(not one.sums.isdisjoint(other.sums) for other in taken):
            continue
        better = _better(graph, replace(options, shortcuts=(*taken, one)), best, {})
        if better is not None:
            best, taken = better, [*taken, one]
    return best


def _better(
    graph: g.Graph, options: _Options, than: Solution, refused: dict[int, Obstacle]
) -> Solution | None:
    """A solution with these shortcuts, if it removes more and stores nothing out of range.

    What stands in the way of a step's shortcut is noted in `refused`.
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
        for shortcut in grown:
            refused.update(dict.fromkeys(shortcut.steps, Obstacle(Reason.SCALE_RANGE, None)))
        options = _ban(options.without(*(one.root for one in grown)), solution, excess)
    return None


def _attempt(graph: g.Graph, options: _Options) -> Solution:
    clips = [number for number, op in enumerate(graph.ops) if _has_room(op.role)]
    costly = [number for number in clips if _cost(graph, number) > 0]
    plain = {"always": [], "auto": costly, "never": clips}[options.clip]
    solution = _remove_all(graph, options, plain)
    if options.clip == "auto" and costly and solution.kept:
        solution = _remove_more(graph, options, solution, costly)
    solution.plain = _ask_all_plain(solution, clips, options)
    for shortcut in solution.shortcuts:
        prefer_no_additions(solution.binding, shortcut)
    try:
        solution.values = choose(solution.binding, solution.alone(), solution.dead)
    except Conflict:
        # The waiting sums contradict each other: find out which removal made them do so.
        assert not options.careful
        raise _Restart(replace(options, careful=True)) from None
    return solution


def _has_room(role: g.Role) -> bool:
    return isinstance(role, g.Clip) and role.room


def _cost(graph: g.Graph, number: int) -> float:
    """Extra cost, in elements, of giving this clip bounds per channel."""
    op = graph.ops[number]
    assert isinstance(op.role, g.Clip)
    return op.role.cost * int(np.prod(graph.shapes[op.inputs[0]]))


def _remove_all(graph: g.Graph, options: _Options, plain: Iterable[int]) -> Solution:
    """Try every affine step in order; those that need constants at their readers come last."""
    binding = bind(
        graph,
        plain_clips=frozenset(plain),
        kept_from_start=options.kept_from_start,
        open_sums=options.open_sums(),
    )
    solution = Solution(binding)
    for shortcut in options.shortcuts:
        _try_shortcut(solution, shortcut, options)
    _close_sums(solution, options)
    later: list[tuple[int, ...]] = []
    if _remove_together(solution, options):
        return solution
    for group in _left(solution):
        refusal = _refusal(binding, group, options)
        if refusal is not None:
            _keep(solution, group, refusal, options)
        elif _needs_readers(solution, group):
            later.append(group)
        else:
            _try(solution, group, options)
    for group in later:
        _try(solution, group, options)
    return solution


def _remove_together(solution: Solution, options: _Options) -> bool:
    """Remove all steps in one go if nothing stands in the way of any: the common case, quickly.

    All of them hold together exactly if each, tried after the others, can go.
    """
    binding, system = solution.binding, solution.binding.system
    groups = list(_left(solution))
    steps = [number for group in groups for number in group]
    bound = [binding.bound.get(number) for number in steps]
    affine = [one for one in bound if isinstance(one, BoundAffine)]
    if options.careful or len(affine) < max(2, len(steps)):
        return False
    if any(_refusal(binding, group, options) is not None for group in groups):
        return False
    if not all(one.scale.all() for one in affine):
        return False
    x, y, a, b = (
        np.concatenate([getattr(one, part) for one in affine])
        for part in ("inputs", "outputs", "scale", "shift")
    )
    # Nobody asks for the cause: with a conflict all of it is undone, without one nothing stays.
    cause = system.cause(-1, "", Reason.BRANCHES)
    mark = system.mark()
    try:
        with _trial(solution, options):
            system.scale_by(x, y, a, cause)
            system.shift_map(y, x, a, -b, cause)
            system.shorten(mark)
    except Conflict:
        return False
    solution.removed.extend(steps)
    return True


def _groups(binding: Binding) -> Iterable[tuple[int, ...]]:
    """Affine steps that go together, in the order of the first."""
    for number, group in binding.groups.items():
        role = binding.graph.ops[number].role
        assert isinstance(role, g.AffineStep)
        if group[0] == number and _counts(role):
            yield group


def _left(solution: Solution) -> list[tuple[int, ...]]:
    """The groups that no shortcut took along."""
    gone = set(solution.removed)
    return [group for group in _groups(solution.binding) if group[0] not in gone]


def _counts(role: g.AffineStep) -> bool:
    """Whether somebody wants to know what became of it."""
    return role.removable or role.refusal is not None


def _refusal(binding: Binding, group: tuple[int, ...], options: _Options) -> Obstacle | None:
    """The obstacle that is known before anything is tried."""
    for number in group:
        if number in options.banned:
            return options.banned[number]
        role = binding.graph.ops[number].role
        assert isinstance(role, g.AffineStep)
        if role.refusal is not None:
            return Obstacle(role.refusal[0], None)
        if number not in binding.bound:
            return blame(binding, number, [])
    return None


def _keep(
    solution: Solution, group: tuple[int, ...], obstacle: Obstacle, options: _Options
) -> None:
    """Record that the steps stay, and let their law of staying hold from here on."""
    for number in group:
        solution.kept[number] = obstacle
    binding = solution.binding
    try:
        with _trial(solution, options):
            for number in group:
                if number in binding.bound and number not in binding.kept_from_start:
                    keep_affine(binding, number)
    except Conflict as conflict:
        # A shortcut that leaves a step no way to stay goes before the step's own removal does.
        causes = (binding.system.causes[index] for index in conflict.causes if index >= 0)
        involved = {cause.op for cause in causes}
        roots = [one.shortcut.root for one in solution.shortcuts if one.shortcut.root in involved]
        if roots:
            raise _Restart(options.without(*roots)) from None
        keep = options.kept_from_start | frozenset(group)
        raise _Restart(replace(options, kept_from_start=keep)) from None


def _try(solution: Solution, group: tuple[int, ...], options: _Options) -> bool:
    """Remove the steps, or keep them and say why."""
    dead, zeroed = solution.dead, list(solution.zeroed)
    try:
        _remove(solution, group, options)
    except Conflict as conflict:
        solution.dead, solution.zeroed = dead, zeroed
        solution.met[group[0]] = _clips_among(solution.binding, conflict.causes)
        obstacle = blame(solution.binding, group[0], conflict.causes)
        _keep(solution, group, obstacle, options)
        return False
    solution.removed.extend(group)
    return True


def _try_shortcut(solution: Solution, shortcut: Shortcut, options: _Options) -> bool:
    """Remove all steps of a sum together, or leave it as it was."""
    binding, gone = solution.binding, set(solution.removed)
    if any(number not in binding.open_sums for number in shortcut.sums):
        return False
    steps = _steps_with(binding, shortcut)
    if not options.banned.keys().isdisjoint(steps):
        return False
    if not gone.isdisjoint(steps) or not solution.kept.keys().isdisjoint(steps):
        return False
    before = _save(solution)
    own = [step for step in steps if step not in shortcut.steps or step in shortcut.bound]
    try:
        with _trial(solution, options):
            for number in own:
                _remove_step(solution, number)
            bound = lay(binding, shortcut)
            if any(np.isin(one.variables, solution.dead.variables).any() for one in bound.terms):
                raise Conflict([])
    except Conflict as conflict:
        _restore(solution, before)
        solution.met[shortcut.root] = _clips_among(binding, conflict.causes)
        for number in shortcut.steps:
            solution.refused[number] = blame(binding, number, conflict.causes)
        return False
    for number in shortcut.sums:
        del binding.open_sums[number]
    solution.removed.extend(steps)
    solution.shortcuts.append(bound)
    return True


def _steps_with(binding: Binding, shortcut: Shortcut) -> list[int]:
    """The steps that go if a shortcut does: also other calls, and those behind a tap."""
    taps = (term.tap for term in shortcut.terms)
    steps = {*shortcut.steps, *(step for tap in taps if tap for step in tap.steps)}
    return sorted({number for step in steps for number in binding.groups[step]})


def _close_sums(solution: Solution, options: _Options) -> None:
    """Let the plain law hold for each sum that no shortcut took along."""
    for number in sorted(solution.binding.open_sums):
        try:
            with _trial(solution, options):
                lay_sum(solution.binding, number)
        except Conflict:
            raise _Restart(options.without(number)) from None


def _clips_among(binding: Binding, causes: Iterable[int]) -> frozenset[int]:
    found = (binding.system.causes[index] for index in causes if index >= 0)
    return frozenset(cause.op for cause in found if cause.reason is Reason.CLIP_COST)


def _remove(solution: Solution, group: tuple[int, ...], options: _Options) -> None:
    with _trial(solution, options):
        for number in group:
            _remove_step(solution, number)


@contextmanager
def _trial(solution: Solution, options: _Options) -> Iterator[None]:
    """A trial of the system; a careful one also asks whether the waiting sums can be solved."""
    system = solution.binding.system
    with system.trial():
        yield
        if options.careful:
            system.sums.settle()
            solve_waiting(system.sums, np.zeros(system.count))


def _remove_step(solution: Solution, number: int) -> None:
    """s_x = a * s_y, t_y = a * t_x - b; see `constants` for a = 0."""
    binding, system = solution.binding, solution.binding.system
    bound = binding.bound[number]
    assert isinstance(bound, BoundAffine)
    x, y, a, b = bound.inputs, bound.outputs, bound.scale, bound.shift
    name = binding.graph.ops[number].name
    cause = system.cause(number, name, Reason.BRANCHES)
    zero = a == 0
    is_dead, known = solution.dead.of(x)
    constant = y[:0]
    if zero.any() or is_dead.any():
        readers = _readers(solution)
        made = constants.at_producer(readers, bound, zero) & ~is_dead
        producers, channels = readers.producer[x[made]], readers.producer_channel[x[made]]
        solution.zeroed += zip(producers.tolist(), channels.tolist(), strict=True)
        a, b = np.where(made, 1.0, a), np.where(made, b - readers.offset[x], b)
        zero = (zero & ~made) | is_dead
        value = b.copy()
        value[is_dead] += a[is_dead] * known
        constant, value = y[zero], value[zero]
        x, y, a, b = (part[~zero] for part in (x, y, a, b))
    system.scale_by(x, y, a, cause)
    system.shift_map(y, x, a, -b, cause)
    if len(constant):
        _constant_outputs(solution, number, constant, value)


def _readers(solution: Solution) -> constants.Readers:
    """Looked up once, as the solver does not change who reads what, and kept up with removals."""
    seen = solution.seen_through
    if solution.readers is None or solution.removed[: len(seen)] != seen:
        solution.readers = constants.read(solution.binding)
        seen.clear()
    for number in solution.removed[len(seen) :]:
        constants.see_through(solution.binding, solution.readers, number, solution.dead.variables)
        seen.append(number)
    return solution.readers


def _constant_outputs(
    solution: Solution, number: int, outputs: IntArray, values: np.ndarray
) -> None:
    """Let the readers of a step's constant outputs take these in."""
    op = solution.binding.graph.ops[number]
    given = constants.some_constants(outputs, values)
    readers, removed = _readers(solution), set(solution.removed)
    assert given is not None, "each combination has an output of its own"
    found = constants.at_consumers(solution.binding, readers, op.outputs[0], given, removed)
    if isinstance(found, constants.Stop):
        raise Conflict([_cause_of(solution, number, found)])
    solution.dead = solution.dead.joined(found)


def _cause_of(solution: Solution, number: int, stop: constants.Stop) -> int:
    """The constraint to blame for constants of a step that its readers cannot take in."""
    ops = solution.binding.graph.ops
    name = ops[stop.op if stop.op >= 0 else number].name
    owner = number if stop.reason is Reason.ZERO_GAMMA else stop.op
    return solution.binding.system.cause(owner, name, stop.reason)


def _needs_readers(solution: Solution, group: tuple[int, ...]) -> bool:
    """Whether a zero gamma of the group cannot be settled at its producer."""
    for number in group:
        bound = solution.binding.bound[number]
        assert isinstance(bound, BoundAffine)
        zero = bound.scale == 0
        if zero.any():
            readers = _readers(solution)
            if (zero & ~constants.at_producer(readers, bound, zero)).any():
                return True
    return False


def _ask_all_plain(solution: Solution, clips: Sequence[int], options: _Options) -> set[int]:
    """The clips that can keep their bounds: all at once if they can, else one after the other."""
    possible = [number for number in clips if not _is_moved(solution, number)]
    try:
        with _trial(solution, options):
            for number in possible:
                _demand_plain(solution, number)
    except Conflict:
        return {number for number in possible if _ask_plain(solution, number, options)}
    return set(possible)


def _is_moved(solution: Solution, number: int) -> bool:
    """Whether an element of a clip is known to be stored shifted or negative: asking is no use."""
    system, variables = solution.binding.system, _asked(solution, number)
    shift, sign = system.shift.find(variables), system.sign.find(variables)
    moved = (shift.root == 0) & (shift.q != 0.0) | (sign.root == 0) & (sign.p < 0.0)
    return bool(np.count_nonzero(moved))


def _ask_plain(solution: Solution, number: int, options: _Options) -> bool:
    """Let a clip keep its bounds if it can."""
    if _is_moved(solution, number):
        return False
    try:
        with _trial(solution, options):
            _demand_plain(solution, number)
    except Conflict:
        return False
    return True


def _demand_plain(solution: Solution, number: int) -> None:
    plain_clip(solution.binding, number, _asked(solution, number))


def _asked(solution: Solution, number: int) -> IntArray:
    """The variables of a clip's elements, without constants that nobody looks at."""
    bound = solution.binding.bound[number]
    assert isinstance(bound, BoundClip)
    variables = distinct(bound.labels)
    dead = solution.dead.variables
    return np.setdiff1d(variables, dead) if len(dead) else variables


def _remove_more(graph: g.Graph, options: _Options, first: Solution, costly: list[int]) -> Solution:
    """Without the demand that costly clips stay plain: what else goes, where it pays.

    What `first` removed is removed again; then each remaining step goes if the clips that lose
    their plain bounds by it cost less than the step.
    """
    binding = bind(graph, kept_from_start=options.kept_from_start, open_sums=options.open_sums())
    solution = Solution(binding)
    for bound in first.shortcuts:
        _try_shortcut(solution, bound.shortcut, options)
    stay = {
        number: why for number, why in first.kept.items() if _is_settled(graph, number, options)
    }
    for number, obstacle in stay.items():
        _keep(solution, (number,), obstacle, options)
    groups, gone = binding.groups, set(solution.removed)
    for number in first.removed:
        if groups[number][0] == number and number not in gone:
            _try(solution, groups[number], options)
    market = _Market(solution, options, costly, _lost(solution, costly, options))
    for shortcut in options.shortcuts:
        before = _save(solution)
        gain = _elements(graph, [n for n in shortcut.steps if n in first.kept])
        if _try_shortcut(solution, shortcut, options):
            dear = market.price(gain, first.met.get(shortcut.root, frozenset()))
            if dear is not None:
                _restore(solution, before)
                if dear:
                    cost = Obstacle(Reason.CLIP_COST, graph.ops[min(dear)].name)
                    solution.refused.update(dict.fromkeys(shortcut.steps, cost))
    _close_sums(solution, options)
    for group in _left(solution):
        if group[0] not in first.kept or group[0] in stay:
            continue
        before = _save(solution)
        if not _try(solution, group, options):
            continue
        dear = market.price(_elements(graph, group), first.met.get(group[0], frozenset()))
        if dear is None:
            continue
        obstacle = first.kept[group[0]]
        if dear:  # it could go: what `first` ran into may be gone, but not this
            obstacle = Obstacle(Reason.CLIP_COST, graph.ops[min(dear)].name)
        _restore(solution, before)
        _keep(solution, group, obstacle, options)
    return solution


@dataclass(slots=True)
class _Market:
    """What activations cost that lose their plain bounds, and what that buys."""

    solution: Solution
    options: _Options
    costly: Sequence[int]
    lost: frozenset[int]
    """The clips that are paid for."""
    asked: int = 0

    def price(self, gain: int, met: frozenset[int]) -> set[int] | None:
        """Pay for what was just removed; if that is too much, the clips that it would cost.

        `met` are the clips that are known to stand in its way.
        """
        solution, graph = self.solution, self.solution.binding.graph
        dear = {n for n in met if n not in self.lost and _is_moved(solution, n)}
        if _total_cost(graph, dear) < gain and self.asked <= _MOST_ASKED:
            self.asked += len(self.costly)
            now = _lost(solution, self.costly, self.options)
            dear = set(now - self.lost)
            if _total_cost(graph, now) - _total_cost(graph, self.lost) < gain:
                self.lost = now
                return None
        return dear


def _elements(graph: g.Graph, steps: Iterable[int]) -> int:
    """How many elements affine steps compute."""
    return sum(int(np.prod(graph.shapes[graph.ops[n].outputs[0]])) for n in steps)


@dataclass(frozen=True, slots=True)
class _Saved:
    """A solution to go back to."""

    mark: tuple[int, ...]
    rows: int
    dead: constants.Constants
    zeroed: list[tuple[int, int]]
    removed: int
    shortcuts: int
    open_sums: dict[int, BoundSum]


def _save(solution: Solution) -> _Saved:
    system = solution.binding.system
    return _Saved(
        system.mark(),
        system.sums.rows(),
        solution.dead,
        list(solution.zeroed),
        len(solution.removed),
        len(solution.shortcuts),
        dict(solution.binding.open_sums),
    )


def _restore(solution: Solution, saved: _Saved) -> None:
    system = solution.binding.system
    system.rollback(saved.mark)
    system.sums.withdraw(saved.rows)
    solution.dead, solution.zeroed = saved.dead, saved.zeroed
    del solution.removed[saved.removed :]
    del solution.shortcuts[saved.shortcuts :]
    solution.binding.open_sums = saved.open_sums


def _is_settled(graph: g.Graph, number: int, options: _Options) -> bool:
    role = graph.ops[number].role
    assert isinstance(role, g.AffineStep)
    return number in options.banned or role.refusal is not None


def _total_cost(graph: g.Graph, clips: Iterable[int]) -> float:
    return sum(_cost(graph, number) for number in clips)


def _lost(solution: Solution, costly: Sequence[int], options: _Options) -> frozenset[int]:
    """The clips that could not stay plain now."""
    system = solution.binding.system
    mark = system.mark()
    lost = frozenset(number for number in costly if not _ask_plain(solution, number, options))
    system.rollback(mark)
    return lost
