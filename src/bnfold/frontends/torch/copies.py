"""Copies of modules, and what a module holds, to be put back bit for bit.

    deep_copy what copy.deepcopy gives, in a quarter of its time
    borrowed  a module to be run and forgotten: whatever the run does to it, the given one is left
              as it was
    Snapshot  everything that modules hold, by reference; tensors that a run may write to by value

Most of a deep copy's time goes into asking each module, table and number how it wants to be copied.
A module that does not say how is a class and a dictionary, and that can be copied as such.
"""

from __future__ import annotations

import copy
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from bnfold.frontends.torch.held import in_class, is_a, parts_of
from bnfold.frontends.torch.noted import Notes
from bnfold.frontends.torch.restorable import Restorable
from bnfold.frontends.torch.tensor_facts import content_address, is_equal, is_ordinary, shape_if_any
from bnfold.frontends.torch.twins import NotAsItIsError, note_twins

_SMALL = 1 << 24
"""Bytes of weights up to which a run gets weights of its own: whoever writes to them, writes there.
Larger ones are shared; a program that writes to them is noticed, see `Snapshot`."""

_ATOMS = (int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)
_ATOMS += (types.FunctionType, types.BuiltinFunctionType, torch.Size)  # type: ignore[assignment]
_EXACT_ATOMS = frozenset({*_ATOMS, bool})


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; `memo` as for copy.deepcopy, with what is to stand in place of what.

    Afterwards it says what stands for what. Raises NotAsItIsError where a module's own way of being
    copied makes another one, and whatever that raises.
    """
    with same_randomness():
        return _deep_copy(model, memo)


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    given = frozenset(memo)
    modules = [module for module in model.modules() if id(module) not in memo]
    for tensor in _not_copied(modules):
        # PyTorch's own copy of one without content damages memory.
        made_of = tensor if isinstance(tensor, FakeTensor) else tensor.detach().clone()
        memo.setdefault(id(tensor), made_of)
    # An object with a way of its own may look into modules that are not filled yet.
    if id(model) in memo or not all(map(_is_plain, modules)):
        copied: Any = copy.deepcopy(model, memo)
        if "_modules" not in getattr(copied, "__dict__", ()):
            raise NotAsItIsError(f"its copy is no module, but {copied!r:.80}")
        if id(model) not in given:
            note_twins(model, copied, memo, given)
        return copied  # type: ignore[no-any-return]
    for module in modules:
        memo[id(module)] = type(module).__new__(type(module))
    for module in modules:
        state = module.__getstate__()  # type: ignore[no-untyped-call]
        memo[id(module)].__setstate__(_copied_table(state, {}, memo))
    made: nn.Module = memo[id(model)]
    return made


def _not_copied(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """What PyTorch does not copy: tensors that hang on a graph, of a run; such without content."""
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for value in module.__dict__.values():
            kind = type(value)
            if kind in _EXACT_ATOMS:
                continue
            held: Iterable[Any] = (value,)
            if kind is dict or kind is OrderedDict:  # most are, and empty
                held = value.values()
            elif is_a(value, (dict, list, tuple, deque)):
                held = parts_of(value)
            for part in held:
                if type(part) in _EXACT_ATOMS or not is_a(part, Tensor):
                    continue
                if not part.is_leaf or is_a(part, FakeTensor):
                    yield part


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if (known := memo.get(id(value))) is not None:
        return known
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        return _copied_table(value, made, memo) if value else made
    if kind is Tensor:
        return _copied_tensor(value, memo)
    if kind in (tuple, list, set) and _EXACT_ATOMS.issuperset(map(type, value)):
        return value if kind is tuple else memo.setdefault(id(value), kind(value))
    return copy.deepcopy(value, memo)


def _copied_tensor(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A clone, if it is all of its memory and nothing more: a buffer, mostly."""
    if _is_bare(tensor):
        storage = tensor.untyped_storage()
        known = memo.setdefault("torch", {})  # type: ignore[call-overload]  # PyTorch's own entry
        if storage._cdata not in known and storage.nbytes() == tensor.nbytes:
            made = memo[id(tensor)] = tensor.clone()
            known[storage._cdata] = made.untyped_storage()
            return made
    copied: Tensor = copy.deepcopy(tensor, memo)
    return copied


def _is_bare(tensor: Tensor) -> bool:
    """Whether it is numbers in the usual order, and nothing else."""
    if tensor.requires_grad or tensor.grad is not None or tensor.__dict__:
        return False
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def _copied_table(table: Any, made: Any, memo: dict[int, Any]) -> Any:
    """Fill `made` with copies of what is in a table; most of that is plain, or an empty table."""
    for key, value in table.items():
        kind = type(value)
        if type(key) not in _EXACT_ATOMS:
            key = copy.deepcopy(key, memo)
        if kind in _EXACT_ATOMS:
            made[key] = value
        elif (kind is dict or kind is OrderedDict) and not value and id(value) not in memo:
            made[key] = memo[id(value)] = kind()
        else:
            made[key] = _copied(value, memo)
    return made


def _is_plain(module: nn.Module) -> bool:
    """Whether it is copied by copying its dictionary, like most."""
    kind = type(module)
    plain = _plain_kinds.get(kind)
    if plain is None:
        ours = "torch.nn.modules."
        own = [base for base in kind.__mro__[:-1] if not base.__module__.startswith(ours)]
        defined = {name for base in own for name in base.__dict__}
        slots = any(base.__dict__.get("__slots__") for base in own)
        plain = not slots and not defined & _OWN_WAYS
        plain &= in_class(kind, "__deepcopy__") is None and not issubclass(
            kind, torch.jit.ScriptModule
        )
        _plain_kinds[kind] = plain
    return plain


_OWN_WAYS = {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__"}


_plain_kinds: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


@contextmanager
def borrowed(model: nn.Module, *, writes: bool = False) -> Iterator[nn.Module]:
    """Something that computes what the module computes, and may be run.

    One that `writes` to its weights gets weights of its own, however large they are.

    It is a copy, or where none can be had the module itself, which is put back afterwards. What a
    closure, a hook or a global holds is no copy: see `Snapshot` for that.
    """
    # A program's module holds tables of tensors and nothing else, and takes long to be copied.
    changed = Tensor.clone if writes else None
    own = None if isinstance(model, fx.GraphModule) else throwaway(model, changed)
    with lent(model, writes=writes) if own is None else same_randomness():
        yield model if own is None else own


@contextmanager
def lent(
    model: nn.Module, *, writes: bool = False, loose: Iterable[Tensor] = ()
) -> Iterator[nn.Module]:
    """The module itself, to be run: its modules and `loose` tensors are put back afterwards."""
    kept = Snapshot(model.modules(), weights=writes or _writes(model), loose=loose)
    with kept.restoring(), same_randomness():
        for module in kept.modules:
            vars(module).pop("_compiled_call_impl", None)  # a copy has none either
        yield model


def _writes(model: nn.Module) -> bool:
    """Whether it is a program with an op that writes: to a parameter, for all that is known."""
    return isinstance(model, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for part in model.modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
    )


def throwaway(
    model: nn.Module, changed: Callable[[Tensor], Tensor] | None = None
) -> nn.Module | None:
    """A copy, large weights shared or `changed`; None where none can be had."""
    if changed is None:
        changed = Tensor.clone if is_small(model) else Tensor.detach
    memo: dict[int, Any] = {}
    try:
        for parameter in model.parameters():
            content = changed(parameter.data)
            memo[id(parameter)] = alike = nn.Parameter(content, parameter.requires_grad)
            alike.__dict__.update(parameter.__dict__)
        return deep_copy(model, memo)
    except Exception:  # whatever copying the user's objects raises
        return None


def is_small(model: nn.Module) -> bool:
    """Whether its weights are so few that a copy of them is nothing."""
    weights = (weight for weight in model.parameters() if not is_lazy(weight))
    return sum(weight.numel() * weight.element_size() for weight in weights) <= _SMALL


@contextmanager
def same_randomness() -> Iterator[None]:
    """What is drawn inside is drawn again outside: PyTorch's, NumPy's and Python's randomness."""
    is_running = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = range(torch.cuda.device_count()) if is_running else ()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(cuda)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Snapshot(Restorable):
    """What some modules are and hold: classes, attributes, tables, tensors, flags, gradients.

    The content of parameters is kept with `weights` alone, else the memory that they are in: nobody
    who runs a module writes to that, or it has memory of its own for the time of the run. That of
    `loose` tensors, which are attributes, is kept.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        weights: bool = False,
        loose: Iterable[Tensor] = (),
        surroundings: Restorable | None = None,
    ) -> None:
        self.surroundings = surroundings
        """What the modules' code keeps elsewhere, which is put back as well."""
        self._notes = Notes(calls=0)
        self._notes.note(*modules)
        self.modules = self._notes.modules  # and what they hold without knowing it as a part
        self._owns = [(module, type(module), module.__dict__) for module in self.modules]
        tensors = {
            id(tensor): tensor
            for module in self.modules
            for table in (module._parameters, module._buffers)
            for tensor in table.values()
            if tensor is not None and not is_lazy(tensor)
        }
        self._tensors = [
            (tensor, tensor.data, tensor.requires_grad, tensor.grad if tensor.is_leaf else None)
            for tensor in tensors.values()
        ]
        self._contents = [
            (tensor, tensor.detach().clone())
            for tensor in tensors.values()
            if not isinstance(tensor, nn.Parameter) or (weights and _is_usual(tensor))
            if not tensor.is_meta
        ]
        self._contents += [(tensor, tensor.detach().clone()) for tensor in loose]

    def restore(self) -> None:
        """Put everything back; what did not change is not touched."""
        for module, kind, own in self._owns:
            if type(module) is not kind:
                object.__setattr__(module, "__class__", kind)
            if module.__dict__ is not own:
                object.__setattr__(module, "__dict__", own)
        self._notes.restore()
        for tensor, data, requires_grad, grad in self._tensors:
            if _place(tensor) != _place(data):
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad = requires_grad
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad
        with torch.no_grad():
            for tensor, content in self._contents:
                if not is_equal(tensor, content):
                    _write_back(tensor, content)
        if self.surroundings is not None:
            self.surroundings.restore()


def _is_usual(weight: Tensor) -> bool:
    """Not one of a class of its own, nor sparse."""
    return type(weight) is nn.Parameter and weight.layout is torch.strided


def _write_back(tensor: Tensor, content: Tensor) -> None:
    try:
        tensor.data.copy_(content)  # `data`: see `shadow`
    except Exception:  # a class of its own, which may neither compare nor be written to
        if is_ordinary(tensor):
            raise


def _place(tensor: Tensor) -> Any:
    """Which memory it shows, in which shape."""
    return content_address(tensor), shape_if_any(tensor)
