"""What is written down of a run: values, constants, events, and the module calls around them.

Values are contents of tensors, not tensors: a write in place makes a new one. Constants are tensors
that do not depend on the input. `record` fills these in.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.told_numbers import Asked

Geometry = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Storage offset, shape, strides."""


@dataclass(frozen=True, slots=True)
class Value:
    """The content of a tensor at one time."""

    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int
    """Number of the memory it lived in."""
    handle: int
    """Number of the tensor object through which it was made or read."""


class Derivation(StrEnum):
    """What was made of a parameter or buffer."""

    ITSELF = ""
    TRANSPOSED = "t"
    SIGNS = "sign"
    RESHAPED = "view"
    REPEATED = "matrices"
    """A matrix, as often as the first of three axes is long: x @ W of many samples."""
    REPEATED_TRANSPOSED = "matrices t"
    VIEWED = "strides"
    """Its memory, in another order or repeated."""
    OTHER = "?"
    """Anything else: an edit of the parameter would come out as who knows what."""

    def then(self, further: Derivation) -> Derivation:
        """What both steps make, one after the other."""
        if self is Derivation.ITSELF or self is further is Derivation.RESHAPED:
            return further
        if self is further is Derivation.TRANSPOSED:
            return Derivation.ITSELF
        return Derivation.OTHER


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A tensor that does not depend on the input."""

    tensor: Tensor
    origin: Tensor
    """The parameter or buffer behind it, or the tensor itself."""
    how: Derivation = Derivation.ITSELF
    """What the tensor is of its origin."""

    @property
    def is_itself(self) -> bool:
        """Whether the tensor holds what its origin holds, in the same shape."""
        return self.how is Derivation.ITSELF

    @property
    def is_shaped_by_code(self) -> bool:
        """Whether how large it is, or what it holds, may differ between runs."""
        return self.how not in _AS_LONG_AS_THEIR_ORIGIN

    @property
    def is_transposed(self) -> bool:
        """Whether the tensor is its origin, transposed."""
        return self.how is Derivation.TRANSPOSED


_AS_LONG_AS_THEIR_ORIGIN = (
    Derivation.ITSELF,
    Derivation.TRANSPOSED,
    Derivation.SIGNS,
    Derivation.RESHAPED,
)


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module."""

    module: nn.Module | None
    name: str
    parent: Call | None
    items: list[Call | Event] = field(default_factory=list)
    """What happened directly inside, in order."""
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    single: bool = False
    """Exactly one tensor went in and exactly one came out."""
    node: fx.Node | None = None
    """The node of an exported program, in place of a module."""


@dataclass(slots=True, eq=False)
class Event:
    """One op or leaf module call."""

    number: int
    target: Any
    """An OpOverload, or the leaf module."""
    args: tuple[Any, ...]
    """Arguments with tensors replaced by Value or Const."""
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    call: Call
    name: str
    written: Value | None = None
    """The value before the write, for an op that works in place."""
    stamp: int = 0
    """Tensor objects with a larger handle number were made later than this event."""


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """Somebody looks at a parameter or buffer."""

    event: Event | None
    """The event that takes it; None for a computation on constants."""
    how: Derivation
    """See `Const.how`."""
    call: Call
    """The module call in which it happens."""


@dataclass(frozen=True, slots=True)
class Write:
    """A part of a storage got a new value."""

    geometry: Geometry
    value: Value


@dataclass(slots=True, eq=False)
class Storage:
    """Memory that tensors share."""

    number: int
    writes: list[Write] = field(default_factory=list)
    versions: set[int | None] = field(default_factory=set)
    """PyTorch's counts of writes, as they are after those that were seen."""


@dataclass(slots=True, eq=False)
class Handle:
    """What is known of one tensor object."""

    number: int
    recording: Recording
    value: Value
    storage: Storage
    geometry: Geometry
    seen: int
    """How many of the storage's writes `value` reflects."""
    version: int | None
    """PyTorch's count of writes when it was last read; None where it does not count."""

    def __deepcopy__(self, memo: Any) -> None:
        """A copied tensor is another tensor."""

    def __reduce__(self) -> tuple[type[OrderedDict[Any, Any]], tuple[()]]:
        """So is one that was saved and loaded; `torch.load` takes an empty dictionary from all."""
        return OrderedDict, ()


@dataclass(frozen=True, slots=True, eq=False)
class Further:
    """Inputs beside the examples that a module takes, one for each of these."""

    runs: Sequence[Any]
    is_other: bool
    """Whether its code takes another path on them, or decides otherwise on the way."""


@dataclass(slots=True, eq=False)
class Recording:
    """Everything that was written down, over one or several runs."""

    events: list[Event] = field(default_factory=list)
    roots: list[Call] = field(default_factory=list)
    calls: dict[int, list[Call]] = field(default_factory=dict)
    """Calls per module, by id(module)."""
    inputs: list[tuple[Value, str]] = field(default_factory=list)
    outputs: list[tuple[Value, str]] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    alive: list[Any] = field(default_factory=list)
    """Weak references to the tensors that depend on the input."""
    persistent: set[int] = field(default_factory=set)
    """Storages that outlive the run: inputs, outputs, parameters and buffers."""
    handed_back: set[int] = field(default_factory=set)
    """Storages that were asked for in a layout that they had; see `handed_back`."""
    reads: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Per storage: (number of the next event, handle number) of each read, in order."""
    parameter_uses: dict[int, list[Use]] = field(default_factory=dict)
    """Per id(parameter or buffer): everything that looks at it."""
    owned: dict[int, Tensor] = field(default_factory=dict)
    """The model's parameters and buffers, by id()."""
    entered: frozenset[str] = frozenset()
    """Methods that were run besides forward, by their dotted names."""
    members: frozenset[int] = frozenset()
    """id() of the modules that belong to the model: no others may be changed."""
    lent_biases: dict[int, nn.Module] = field(default_factory=dict)
    """Per id(tensor): modules that were lent a zero bias, to see whether they pass it on."""
    open_nodes: set[fx.Node] = field(default_factory=set)
    """In an exported program, what no run tells for all; see `symbolic`."""
    written: frozenset[str] = frozenset()
    """In an exported program, the names of the placeholders that a run writes to."""
    open_axes: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    """Per event number and place among its outputs, axes (those that have other lengths elsewhere
    among them) and after how many entries what lies along each comes again; see `open_lengths`."""
    open_arguments: dict[int, frozenset[str]] = field(default_factory=dict)
    """Per event number, the arguments that are others on other sizes; see `read_other_sizes`."""
    asked: Asked = field(default_factory=Asked)
    """What the program's code wanted to know of sizes."""
    further: list[Further] = field(default_factory=list)
    """Inputs of other sizes and layouts that it was read on as well; see `read_other_sizes`."""
    rounds: int = 1
    """In how many runs in a row it was read, until a run left it as one before had."""
    given: int | None = None
    """How many events are of the example inputs, where others are of further sizes."""
    by_chance: bool = False
    """Whether the program took a number out of what is drawn at random."""
    is_told_constants: bool = False
    """Whether the code was told what a tensor holds that does not depend on the input."""
    counts: bool = False
    """Whether a run leaves other numbers in the modules than it found; see `state`."""
    takes_numbers: bool = False
    """Whether a caller gives numbers besides tensors, or may."""
    unsettled: tuple[str, ...] = ()
    """Where each of many runs left something else for the next; see `left_behind`."""
    is_told: bool = False
    """Whether sizes that the code asked for noted what became of them."""
    is_structural: bool = False
    """Whether nothing was computed in the run; see `structure_run`."""
    lost: list[nn.Module] = field(default_factory=list)
    """Members that ran in another thread: they stay as they are."""
    unopened: tuple[str, ...] = ()
    """Classes of inputs that may hold tensors which nobody can follow; see `opened_inputs`."""
    handed_out: dict[int, nn.Module] = field(default_factory=dict)
    """Members, by id(), that what a run returns leads to; see `handed_out`."""
    parted: list[nn.Module] = field(default_factory=list)
    """Those of them that a later run, or one on other inputs, uses behind where the two part."""
    varying: set[int] = field(default_factory=set)
    """Numbers of events whose numbers or constants are other ones in other runs."""
    read_later: list[Value] = field(default_factory=list)
    """Values that other runs read where they take another path; see `parting`."""
    changed: set[int] = field(default_factory=set)
    """id() of parameters and buffers that a run changes."""
    counter: Iterator[int] = field(default_factory=itertools.count)


LOOK = "look"
"""Target of the event that stands for values being taken out of PyTorch."""
OVERLAY = "overlay"
"""Target of the event that puts a written part back into the tensor it is a view of."""


_LEAVES = (Tensor, Value, Const, int, float, str, type(None))
_EXACT_LEAVES = frozenset({*_LEAVES, nn.Parameter, bool, torch.dtype, torch.device})
"""What most leaves are, told without asking for subclasses."""


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dicts; PyTorch's own function where there is more."""
    leaves: list[Any] = []
    _collect(tree, leaves)
    return leaves


def _collect(tree: Any, leaves: list[Any]) -> None:
    kind = type(tree)
    if kind in _EXACT_LEAVES:
        leaves.append(tree)
    elif kind is tuple or kind is list:
        for part in tree:
            _collect(part, leaves)
    elif kind is dict:
        for part in tree.values():
            _collect(part, leaves)
    elif isinstance(tree, _LEAVES):
        leaves.append(tree)
    else:
        leaves.extend(pytree.tree_leaves(tree))


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The tree with `function` applied to its tensors."""
    return _mapped(Tensor, function, tree)


def map_constants(function: Callable[[Const], Const], tree: Any) -> Any:
    """The tree with `function` applied to its constants."""
    return _mapped(Const, function, tree)


def _mapped(of: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with `function` applied to leaves of a type; PyTorch's own where there is more."""
    kind = type(tree)
    if kind is tuple:
        return tuple([_mapped(of, function, part) for part in tree])
    if kind is list:
        return [_mapped(of, function, part) for part in tree]
    if kind is dict:
        return {key: _mapped(of, function, part) for key, part in tree.items()}
    if isinstance(tree, of):
        return function(tree)
    if isinstance(tree, _LEAVES):
        return tree
    return pytree.tree_map_only(of, function, tree)


def constants(*trees: Any) -> Iterator[Const]:
    """The constants among an event's arguments."""
    for leaf in leaves_of(trees):
        if isinstance(leaf, Const):
            yield leaf


def values(*trees: Any) -> Iterator[Value]:
    """The values among an event's arguments."""
    for leaf in leaves_of(trees):
        if isinstance(leaf, Value):
            yield leaf


def is_contiguous(value: Value) -> bool:
    """Whether it lies in memory in one piece and in its own order, so that any view of it fits."""
    expected = 1
    for length, stride in zip(reversed(value.shape), reversed(value.strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def lie_alike(first: Value, second: Value) -> bool:
    """Whether the axes lie in memory in the same order, those of length 1 aside."""
    lengths = enumerate(zip(first.shape, second.shape, strict=True))
    long = [axis for axis, both in lengths if min(both) > 1]
    orders = (sorted(long, key=lambda axis: -value.strides[axis]) for value in (first, second))
    return next(orders) == next(orders)
