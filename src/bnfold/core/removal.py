"""What a solution is, and how affine steps are removed from it or kept: each a trial with undo."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bnfold.core import constants
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding, BoundSum
from bnfold.core.blame import Obstacle, blame
from bnfold.core.choose import Values
from bnfold.core.forest import Conflict
from bnfold.core.laws import keep_affine
from bnfold.core.modes import ClipMode
from bnfold.core.reasons import Reason
from bnfold.core.shortcut_law import BoundShortcut
from bnfold.core.shortcuts import Shortcut
from bnfold.core.sums import solve_waiting


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
class Options:
    """What an attempt to solve a network may do."""

    clip: ClipMode
    banned: Mapping[int, Obstacle]
    kept_from_start: frozenset[int] = frozenset()
    found: Mapping[int, Obstacle] = field(default_factory=dict)
    """What stood in the way of these, before their law of staying held."""
    careful: bool = False
    """Check after each removal that the waiting sums still have a solution."""
    shortcuts: tuple[Shortcut, ...] = ()
    """Sums to try as a whole, outer ones before those inside."""
    stiff_first: bool = False
    """Try those steps before all others that would give less way if they stayed."""

    given_scales: Mapping[int, FloatArray | None] = field(default_factory=dict)
    """See `fixed_summands`."""

    def open_sums(self) -> frozenset[int]:
        """The sums whose law depends on what is tried."""
        return frozenset(number for shortcut in self.shortcuts for number in shortcut.sums)

    def without(self, *sums: int) -> Options:
        """The same, but these sums keep to their plain law."""
        left = tuple(shortcut for shortcut in self.shortcuts if shortcut.sums.isdisjoint(sums))
        return replace(self, shortcuts=left)


class Restart(Exception):  # noqa: N818  # control flow, not an error
    """What was found out late has to hold from the start."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options


@contextmanager
def demand(solution: Solution, options: Options) -> Iterator[None]:
    """A trial of constraints alone; a careful one asks whether the waiting sums can be solved."""
    system = solution.binding.system
    with system.trial():
        yield
        if options.careful:
            system.sums.settle()
            solve_waiting(system.sums, np.zeros(system.count))


@contextmanager
def trial(solution: Solution, options: Options) -> Iterator[None]:
    """What is demanded and removed inside holds together; an exception undoes all of it.

    What was kept or found out inside stays.
    """
    before = _Saved.of(solution)
    try:
        with demand(solution, options):
            yield
    except Exception:
        before.restore(solution)
        raise


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a trial can change of a solution, as it was before."""

    mark: tuple[int, ...]
    rows: int
    dead: constants.Constants
    zeroed: int
    removed: int
    shortcuts: int
    open_sums: dict[int, BoundSum]

    @staticmethod
    def of(solution: Solution) -> _Saved:
        """What is needed to come back to this point."""
        system = solution.binding.system
        return _Saved(
            system.mark(),
            system.sums.rows(),
            solution.dead,
            len(solution.zeroed),
            len(solution.removed),
            len(solution.shortcuts),
            dict(solution.binding.open_sums),
        )

    def restore(self, solution: Solution) -> None:
        """Undo all that was removed since."""
        system = solution.binding.system
        system.rollback(self.mark)
        system.sums.withdraw(self.rows)
        solution.dead = self.dead
        del solution.zeroed[self.zeroed :]
        del solution.removed[self.removed :]
        del solution.shortcuts[self.shortcuts :]
        solution.binding.open_sums = self.open_sums


def _groups(binding: Binding) -> Iterable[tuple[int, ...]]:
    """Affine steps that go together, in the order of the first."""
    for number, _, step in binding.graph.steps():
        group = binding.groups[number]
        if group[0] == number and step.is_reported:
            yield group


def groups_left(solution: Solution, options: Options) -> list[tuple[int, ...]]:
    """The groups that no shortcut took along, in the order in which they are tried."""
    gone = set(solution.removed)
    left = [group for group in _groups(solution.binding) if group[0] not in gone]
    if not options.stiff_first:
        return left
    graph = solution.binding.graph
    return sorted(left, key=lambda group: not graph.step(group[0]).is_stiff)


def known_refusal(binding: Binding, group: tuple[int, ...], options: Options) -> Obstacle | None:
    """The obstacle that is known before anything is tried."""
    for number in group:
        if number in options.banned:
            return options.banned[number]
        refusal = binding.graph.step(number).refusal
        if refusal is not None:
            return Obstacle(refusal.reason, None)
        if number not in binding.affine:
            return blame(binding, number, [])
    return None


def keep(solution: Solution, group: tuple[int, ...], obstacle: Obstacle, options: Options) -> None:
    """Record that the steps stay, and let their law of staying hold from here on."""
    for number in group:
        solution.kept[number] = obstacle
    binding = solution.binding
    try:
        with demand(solution, options):
            for number in group:
                if number in binding.affine and number not in binding.kept_from_start:
                    keep_affine(binding, number)
    except Conflict as conflict:
        # A shortcut that leaves a step no way to stay goes before the step's own removal does.
        causes = (binding.system.causes[index] for index in conflict.causes if index >= 0)
        involved = {cause.op for cause in causes}
        roots = [
            bound.shortcut.root for bound in solution.shortcuts if bound.shortcut.root in involved
        ]
        if roots:
            raise Restart(options.without(*roots)) from None
        stay = options.kept_from_start | frozenset(group)
        found = {**dict.fromkeys(group, obstacle), **options.found}
        raise Restart(replace(options, kept_from_start=stay, found=found)) from None


def try_group(solution: Solution, group: tuple[int, ...], options: Options) -> bool:
    """Remove the steps, or keep them and say why."""
    try:
        with trial(solution, options):
            remove_steps(solution, group)
    except Conflict as conflict:
        solution.met[group[0]] = clips_among(solution.binding, conflict.causes)
        obstacle = blame(solution.binding, group[0], conflict.causes)
        if obstacle.blocker == solution.binding.graph.ops[group[0]].name:  # its law of staying
            obstacle = options.found.get(group[0], obstacle)
        keep(solution, group, obstacle, options)
        return False
    return True


def try_groups(solution: Solution, groups: Sequence[tuple[int, ...]], options: Options) -> None:
    """Remove each of these groups, or keep it and say why.

    A program does not tell which of its steps are calls of one module. Such steps have the same
    constants; where some are zeros, one of them may go only with the others: so these are tried
    together, and if that fails each in its turn.
    """
    alike = _alike(solution, groups)
    gone: set[tuple[int, ...]] = set()
    for group in groups:
        together = alike[group]
        if len(together) > 1 and together[0] == group and _go_together(solution, together, options):
            gone.update(together)
        if group not in gone:
            try_group(solution, group, options)


def _alike(
    solution: Solution, groups: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Per group, those whose zero gammas may depend on each other, itself included, in order."""
    binding = solution.binding
    alike: dict[Hashable, list[tuple[int, ...]]] = {}
    for group in groups:
        role = binding.affine[group[0]].role
        may_depend = bool(binding.linear_ties) and not role.scale.all()
        same = (role.scale.tobytes(), role.shift.tobytes())
        alike.setdefault(same if may_depend else group, []).append(group)
    return {group: together for together in alike.values() for group in together}


def _go_together(solution: Solution, groups: Sequence[tuple[int, ...]], options: Options) -> bool:
    """Whether the steps of these groups could go at once."""
    try:
        with trial(solution, options):
            remove_steps(solution, [number for group in groups for number in group])
    except Conflict:
        return False
    return True


def clips_among(binding: Binding, causes: Iterable[int]) -> frozenset[int]:
    """The clips with plain bounds among the causes of a conflict."""
    involved = (binding.system.causes[index] for index in causes if index >= 0)
    return frozenset(cause.op for cause in involved if cause.reason is Reason.CLIP_COST)


def remove_steps(solution: Solution, steps: Sequence[int]) -> None:
    """Remove steps that go together, as the calls of one module do."""
    binding = solution.binding
    has_zeros = any((binding.affine[number].scale == 0).any() for number in steps)
    zeroed = constants.at_producer(binding, _readers(solution), steps) if has_zeros else {}
    given: dict[int, constants.Constants] = {}
    for number in steps:
        constant = _remove_step(solution, number, zeroed.get(number))
        if constant is not None:
            given[binding.graph.ops[number].outputs[0]] = constant
    if given:
        _constant_outputs(solution, steps[0], given)
    solution.removed.extend(steps)


def _remove_step(
    solution: Solution, number: int, made: NDArray[np.bool_] | None
) -> constants.Constants | None:
    """s_x = a * s_y, t_y = a * t_x - b; see `constants` for a = 0.

    `made` are the combinations whose producers make zeros. Returns what is left for readers.
    """
    binding, system = solution.binding, solution.binding.system
    bound = binding.affine[number]
    x, y, a, b = bound.inputs, bound.outputs, bound.scale, bound.shift
    cause = system.cause(number, binding.graph.ops[number].name, Reason.BRANCHES)
    is_dead, known = solution.dead.of(x)
    if made is not None:
        readers = _readers(solution)
        solution.zeroed += constants.makers(readers, bound, made)
        a, b = np.where(made, 1.0, a), np.where(made, b - readers.offset[x], b)
    value = b.copy()
    value[is_dead] += a[is_dead] * known
    zero = (a == 0) | is_dead
    live = ~zero
    system.scale_by(x[live], y[live], a[live], cause)
    system.shift_map(y[live], x[live], a[live], -b[live], cause)
    return constants.some_constants(y[zero], value[zero]) if zero.any() else None


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
    solution: Solution, number: int, given: Mapping[int, constants.Constants]
) -> None:
    """Let the readers of constants, by tensor, take these in."""
    readers, removed = _readers(solution), set(solution.removed)
    seen = constants.at_consumers(solution.binding, readers, given, removed)
    if isinstance(seen, constants.Stop):
        raise Conflict([_cause_of(solution, number, seen)])
    solution.dead = solution.dead.joined(seen)


def _cause_of(solution: Solution, number: int, stop: constants.Stop) -> int:
    """The constraint to blame for constants of a step that its readers cannot take in."""
    ops = solution.binding.graph.ops
    name = ops[stop.op if stop.op >= 0 else number].name
    owner = number if stop.reason is Reason.ZERO_GAMMA else stop.op
    return solution.binding.system.cause(owner, name, stop.reason)


def needs_readers(solution: Solution, group: Sequence[int]) -> bool:
    """Whether a zero gamma of the group cannot be settled at its producer."""
    binding = solution.binding
    zero = {number: binding.affine[number].scale == 0 for number in group}
    if not any(each.any() for each in zero.values()):
        return False
    made = constants.at_producer(binding, _readers(solution), group)
    return any((zero[number] & ~made[number]).any() for number in group)
