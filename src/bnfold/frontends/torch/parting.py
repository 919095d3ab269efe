"""Two runs of a module that go one way up to a point and part there.

Up to that point both do the same, and so may the fold, as long as nothing is other behind it: what
is read there, and the parameters and modules that are used there, stay what they are. Of the first
run's own rest nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bnfold.frontends.torch import recording as rec
from bnfold.frontends.torch.recording import Event, Recording, Value, constants, values


def part_at(first: Recording, second: Recording, aligned: int) -> None:
    """Note in the first recording that the second does something else after so many events."""
    first.varying.update(event.number for event in first.events[aligned:])
    common = dict(_common(first, second, aligned))
    behind = second.events[aligned:]
    read = [value for event in behind for value in values(event.args, event.kwargs)]
    read += [value for value, _ in second.outputs]
    for value in read:
        if value.number in common:
            first.read_later.append(common[value.number])
            first.persistent.add(common[value.number].storage)
    for event in behind:
        for constant in constants(event.args, event.kwargs):
            _keep_parameter(first, constant)
        first.parted += _modules(event)
    first.lost += first.parted
    first.members -= {id(module) for module in first.lost}
    first.counts = True


def take_over_uses(first: Recording, second: Recording) -> None:
    """Note in the first recording which parameters the second alone takes for who knows what."""
    for key, uses in second.parameter_uses.items():
        known = first.parameter_uses.setdefault(key, [])
        seen = {(use.how, use.call.module) for use in known if use.event is None}
        known += [u for u in uses if u.event is None and (u.how, u.call.module) not in seen]


def _common(first: Recording, second: Recording, aligned: int) -> Iterator[tuple[int, Value]]:
    """The values that both know: by their number in the second, in the first."""
    for (given, _), (again, _) in zip(first.inputs, second.inputs, strict=False):
        yield again.number, given
    for event, other in zip(first.events[:aligned], second.events, strict=False):
        for made, twin in zip(event.outputs, other.outputs, strict=False):
            if made is not None and twin is not None:
                yield twin.number, made


def _keep_parameter(first: Recording, constant: rec.Const) -> None:
    """Somebody takes it for who knows what."""
    uses = first.parameter_uses.setdefault(id(constant.origin), [])
    uses.append(rec.Use(None, rec.Derivation.OTHER, rec.Call(None, "", None)))


def _modules(event: Event) -> Iterator[nn.Module]:
    """The module that an event is, and those in which it happens."""
    if isinstance(event.target, nn.Module):
        yield event.target
    call: rec.Call | None = event.call
    while call is not None:
        if call.module is not None:
            yield call.module
        call = call.parent
