"""Which other methods of a folded model are at risk: they see tensors that are stored rescaled.

A method is read, not run. The submodules that its code names (`self.layer1`), also through other
methods, are the part P of a run that the method repeats. It is at risk where P and the rest meet in
such a tensor:

    a value made in P and read outside, or made outside and read in P, with (s, t) other than (1, 0)

Between two modules of P, the ops of the class's own code belong to P.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from bnfold.core.plan import Plan
from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.lifter import Lifted
from bnfold.frontends.torch.recording import Call, Event, Recording, values


def note_on_methods(
    model: nn.Module,
    recording: Recording,
    lifted: Lifted,
    plan: Plan,
    before: Sequence[str] = (),
) -> str | None:
    """The note for the report; None where no method is at risk.

    `before` are those that were at risk before the fold, see `split_by`.
    """
    names = _of_each_class(model, [*before, *at_risk(model, recording, lifted, plan)])
    if not names:
        return None
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        "Called by themselves, these methods may compute something else than before, as by their"
        " code they run a part of what was merged, or a part of the model at whose border tensors"
        " are stored rescaled now:"
        f" {shown}{more}. Name those that take the model's inputs with entry=[...], or the"
        " submodules that they run with keep=[...]."
    )


_SHOWN = 4


def at_risk(model: nn.Module, recording: Recording, lifted: Lifted, plan: Plan) -> list[str]:
    """Names of methods, as `entry` takes them; of several modules of a class, the first one's."""
    if not plan.removed:
        return []
    candidates = _candidates(model, recording)
    if not candidates:
        return []
    border = _Border(lifted, plan, list(_ends(recording)))
    return _first(candidates, recording, border.is_rescaled_around)


def split_by(model: nn.Module, recording: Recording, wholes: Sequence[frozenset[int]]) -> list[str]:
    """The methods that run some of the events of a whole, and not all of them."""

    def is_split(inside: set[int]) -> bool:
        return any(inside & whole and not whole <= inside for whole in wholes)

    return _first(_candidates(model, recording), recording, is_split)


_Candidate = tuple[str, Any, list[nn.Module]]
"""Its name, what it has in common with the same method of others, and what it runs."""


def _candidates(model: nn.Module, recording: Recording) -> list[_Candidate]:
    reader = _Reader()
    return [
        (f"{prefix}.{name}" if prefix else name, (type(module), name), parts)
        for prefix, module in _outer(model)
        if id(module) in recording.calls
        for name in reader.methods(type(module))
        if (parts := list(reader.parts(module, name)))
    ]


def _first(
    candidates: Sequence[_Candidate], recording: Recording, is_at_risk: Callable[[set[int]], bool]
) -> list[str]:
    names: dict[Any, str] = {}
    for name, key, parts in candidates:
        if key in names or name in recording.entered:
            continue
        if is_at_risk(_repeated(recording, parts)):
            names[key] = name
    return list(names.values())


def _of_each_class(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The first of each class, in the model's order."""
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    firsts: dict[Any, str] = {}
    for name in sorted(names, key=lambda name: places[name.rpartition(".")[0]]):
        prefix, _, method = name.rpartition(".")
        firsts.setdefault((type(model.get_submodule(prefix)), method), name)
    return list(firsts.values())


def _outer(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model and its direct submodules: who calls more than the model calls one of these.

    Further inside, methods are mostly parts of a forward. What has one submodule is a wrapper.
    """
    prefix = ""
    while True:
        yield prefix.removesuffix("."), model
        children = list(model.named_children())
        if len(children) != 1:
            yield from ((prefix + name, child) for name, child in children)
            return
        prefix, model = f"{prefix}{children[0][0]}.", children[0][1]


# -------------------------------------------------------------------- reading code

Chain = tuple[str, ...]
"""Attributes, each read from the one before: ("encoder", "stem") in `self.encoder.stem(x)`."""


@dataclass(slots=True)
class _Reader:
    """Reads methods; each class once."""

    known: dict[type, dict[str, list[FunctionType]]] = field(default_factory=dict)
    public: dict[type, list[str]] = field(default_factory=dict)
    read: dict[CodeType, list[Chain]] = field(default_factory=dict)

    def methods(self, kind: type) -> list[str]:
        """The public methods that have to be given something."""
        if kind not in self.public:
            self.public[kind] = [
                name
                for name, functions in self._functions(kind).items()
                if not name.startswith("_")
                and "fuse" not in name  # made for what has no BatchNorm any more
                and not hasattr(nn.Module, name)
                and _takes_something(functions[0])
            ]
        return self.public[kind]

    def parts(
        self, module: nn.Module, name: str, seen: set[tuple[int, str]] | None = None
    ) -> Iterator[nn.Module]:
        """The modules that a method runs, as far as its code names them."""
        seen = set() if seen is None else seen
        if (id(module), name) in seen:
            return
        seen.add((id(module), name))
        for function in self._functions(type(module)).get(name, ()):
            for chain in self._chains(function.__code__):
                yield from self._follow(module, chain, seen)

    def _follow(
        self, module: nn.Module, chain: Chain, seen: set[tuple[int, str]]
    ) -> Iterator[nn.Module]:
        """What is run at the end of a chain: a submodule, or what a method of one runs."""
        current = module
        for position, name in enumerate(chain):
            part = dict(current._modules.items()).get(name)  # of a script it is no dict
            if part is not None:
                current = part
                continue
            is_last = position == len(chain) - 1
            if is_last and name == "forward" and position:
                yield current
            elif is_last and name != "forward":
                yield from self.parts(current, name, seen)
            return
        yield current

    def _functions(self, kind: type) -> dict[str, list[FunctionType]]:
        """The functions of a class, those of its bases behind them, without PyTorch's own."""
        if kind not in self.known:
            functions: dict[str, list[FunctionType]] = {}
            for base in kind.__mro__:
                if base is object or base.__module__.partition(".")[0] == "torch":
                    continue
                for name, function in vars(base).items():
                    if not is_a(function, FunctionType):
                        continue
                    plain = inspect.unwrap(function)  # behind torch.no_grad() and the like
                    if isinstance(plain, FunctionType):
                        functions.setdefault(name, []).append(plain)
            self.known[kind] = functions
        return self.known[kind]

    def _chains(self, code: CodeType) -> list[Chain]:
        if code not in self.read:
            self.read[code] = _chains(code)
        return self.read[code]


def _takes_something(function: FunctionType) -> bool:
    """Whether there is an argument besides `self` that has to be given."""
    return function.__code__.co_argcount - len(function.__defaults__ or ()) > 1


def _chains(code: CodeType) -> list[Chain]:
    """The chains that the code reads, without those that begin with what it sets."""
    chains: list[list[str]] = []
    assigned: set[str] = set()
    goes_on = False
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            if not goes_on:
                chains.append([])
            chains[-1].append(instruction.argval)
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            assigned.add(instruction.argval)
        goes_on = name in ("LOAD_ATTR", "LOAD_METHOD") or (goes_on and name == "EXTENDED_ARG")
    read = [tuple(chain) for chain in chains if chain[0] not in assigned]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a comprehension, a function inside
            read += _chains(constant)
    return list(dict.fromkeys(read))


# -------------------------------------------------------------------- reading the run


def _repeated(recording: Recording, parts: Sequence[nn.Module]) -> set[int]:
    """Numbers of the events that a method repeats."""
    calls = [call for part in parts for call in _calls(recording, part)]
    chosen = {id(call) for call in calls}
    inside = {event.number for call in calls for event in _events(call)}
    for parent in {id(call.parent): call.parent for call in calls}.values():
        if parent is None:
            continue
        places = [place for place, item in enumerate(parent.items) if id(item) in chosen]
        between = parent.items[places[0] : places[-1]] if places else ()
        inside |= {item.number for item in between if isinstance(item, Event)}
    return inside


def _calls(recording: Recording, part: nn.Module) -> Iterator[Call]:
    """The calls of a module; of a list, those of what is in it."""
    if id(part) in recording.calls:
        yield from recording.calls[id(part)]
        return
    for child in part.children():
        yield from _calls(recording, child)


def _events(call: Call) -> Iterator[Event]:
    for item in call.items:
        if isinstance(item, Event):
            yield item
        else:
            yield from _events(item)


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where a value is made and read."""

    value: int
    maker: int
    """Number of the event."""
    readers: list[int]
    """Numbers of the events."""


def _ends(recording: Recording) -> Iterator[_Ends]:
    readers: dict[int, list[int]] = {}
    for event in recording.events:
        for value in values(event.args, event.kwargs):
            readers.setdefault(value.number, []).append(event.number)
    for event in recording.events:
        for made in event.outputs:
            if made is not None and made.number in readers:
                yield _Ends(made.number, event.number, readers[made.number])


@dataclass(frozen=True, slots=True)
class _Border:
    """Tells what crosses the border between a part of a run and the rest."""

    lifted: Lifted
    plan: Plan
    ends: list[_Ends]
    known: dict[int, bool] = field(default_factory=dict)

    def is_rescaled_around(self, inside: set[int]) -> bool:
        """Whether a value that crosses the border is stored rescaled."""
        return any(
            self._is_rescaled(ends.value)
            for ends in self.ends
            if any((ends.maker in inside) != (reader in inside) for reader in ends.readers)
        )

    def _is_rescaled(self, value: int) -> bool:
        tensor = self.lifted.tensors.get(value)
        if tensor is None:  # inside of what counts as one step
            return False
        if tensor not in self.known:
            self.known[tensor] = self.plan.is_rescaled(tensor)
        return self.known[tensor]
