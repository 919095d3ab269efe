"""Run a PyTorch program once and write down what happened to the values that depend on the input.

Calls of modules that are understood as a whole (Conv2d, BatchNorm2d, ReLU, ...) are one event each;
everything else is recorded as the ATen ops that it dispatches. Tensors that do not depend on the
input are constants and appear only as arguments.

In-place writes are resolved here: every read gets the value that the memory held at that time, also
through views, so the events form a graph without side effects. Who shares memory with whom is kept
too, for the hazard that a removed op leaves two names for one tensor (`aliasing`).
"""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)

from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, is_leaf
from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.recording import (
    LOOK,
    OVERLAY,
    Call,
    Const,
    Derivation,
    Event,
    Geometry,
    Handle,
    Recording,
    Storage,
    Use,
    Value,
    Write,
    constants,
    leaves_of,
    map_tensors,
)
from bnfold.frontends.torch.settings import Given
from bnfold.frontends.torch.shadow import NeedsMemory
from bnfold.frontends.torch.sizes_asked import shape_of, strides_of
from bnfold.frontends.torch.structure_run import (
    NeedsValues,
    Placeholders,
    looks_at_values,
    module_placeholder,
    op_placeholders,
)

_ATTRIBUTE = "_bnfold_handle"
_MADE = "_bnfold_made"
_AT_RANDOM = "at random"
_untyped_storage = torch.Tensor.untyped_storage
"""PyTorch's own: a program's calls of it are watched, the recorder's are not."""

FACTORIES = frozenset(
    {
        "new_empty",
        "new_empty_strided",
        "new_zeros",
        "new_ones",
        "new_full",
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "sym_size",
    }
)
"""Ops that look at the shape of their argument, not at its values."""


def _storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Without a function mode that would take it for the program's own look."""
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined]
        return _untyped_storage(tensor)


def _function_modes() -> list[Any]:
    """Those that are open, the innermost last."""
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down one run; use through `record`."""

    def __init__(
        self,
        recording: Recording,
        names: dict[int, str],
        *,
        structural: bool = False,
        lends: bool = False,
        given: Given | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = recording
        self.names = names
        self.owned = recording.owned
        self.placeholders = Placeholders() if structural else None
        """What is heavy returns one of these instead of computing; see `structure_run`."""
        self.depth = 0
        """Above 0: inside a leaf, nothing is recorded."""
        self.function_modes = len(_function_modes())
        """How many were open before."""
        self.call = Call(None, "", None)
        self.named: dict[tuple[str, str], int] = {}
        """How often an op was called in a module."""
        self.derived: dict[int, tuple[Tensor, Const]] = {}
        self.tainted: dict[int | None, tuple[Tensor, Storage]] = {}
        self.owned_storages: dict[int | None, Tensor] | None = None
        self.saved: list[tuple[Tensor, Tensor]] = []
        self.memories: dict[int, tuple[StorageWeakRef, Storage, Value]] = {}
        """Per address: memory that depends on the input, whatever tensor objects share it."""
        self.strange = False
        """Whether a constant came from nobody knows where."""
        self.is_void = False
        """Whether values were asked for in a run that has none: it tells nothing any more."""

        self.given = given
        """What the modules were set to before; None for an exported program, which has none."""
        self.lends = lends
        """Whether the parameters' memory is the original's."""
        self.has_lent = False
        """Whether that memory was asked for: the run tells nothing any more."""

    @property
    def is_structural(self) -> bool:
        """Whether values mean nothing in this run."""
        return self.placeholders is not None

    # ----------------------------------------------------------------- tensors in and out

    def knows(self, tensor: Tensor) -> bool:
        """Whether the program asks about a tensor that was seen to depend on the input."""
        return not self.depth and isinstance(getattr(tensor, _ATTRIBUTE, None), Handle)

    def handle_of(self, tensor: Tensor) -> Handle | None:
        """The handle of a tensor that depends on the input."""
        handle = getattr(tensor, _ATTRIBUTE, None)
        if isinstance(handle, Handle) and handle.recording is self.recording:
            return handle
        if self.tainted:
            known = self.tainted.get(_memory(tensor))
            if known is not None:
                return self._adopt(tensor, known[1])
        if id(tensor) in self.owned or not self.memories:
            return None
        return self._alias(tensor)

    def _alias(self, tensor: Tensor) -> Handle | None:
        """A tensor that nobody was seen to make, over memory that depends on the input.

        nn.Parameter(y), y.data, set_, DLPack and the like: what it holds has left the recording,
        so nothing more is known than that it looks at all that this memory held.
        """
        known = self.memories.get(address_of(tensor) or -1)
        if known is None or known[0].expired():  # type: ignore[no-untyped-call]
            return None
        _, storage, first = known
        held = (first, *(write.value for write in storage.writes))
        event = self._append(LOOK, held, {}, (), name=f"a look at values in {self.call.name}")
        event.outputs = (self._fresh(tensor, storage),)
        return getattr(tensor, _ATTRIBUTE)  # type: ignore[no-any-return]

    def _remember(self, tensor: Tensor, storage: Storage, value: Value) -> None:
        address = address_of(tensor)
        if address is None:
            return
        known = self.memories.get(address)
        if known is None or known[1] is not storage or known[0].expired():  # type: ignore[no-untyped-call]
            reference = StorageWeakRef(_storage_of(tensor))  # type: ignore[no-untyped-call]
            self.memories[address] = (reference, storage, value)

    def void(self) -> NeedsValues:
        """What to raise where values are asked for; the run is void even if that is swallowed."""
        self.is_void = True
        return NeedsValues()

    def _adopt(self, tensor: Tensor, storage: Storage) -> Handle:
        """A constant whose memory was written to: its old content is stored as it is."""
        value = self._value(tensor, storage, -1)
        return self._attach(tensor, value, storage, seen=0)

    def _value(self, tensor: Tensor, storage: Storage, handle: int) -> Value:
        number = next(self.recording.counter)
        shape, strides = tuple(shape_of(tensor)), strides_of(tensor)
        return Value(number, shape, strides, tensor.dtype, tensor.device, storage.number, handle)

    def _attach(self, tensor: Tensor, value: Value, storage: Storage, *, seen: int) -> Handle:
        number = value.handle if value.handle >= 0 else next(self.recording.counter)
        version = _version(tensor)
        handle = Handle(number, self.recording, value, storage, _geometry(tensor), seen, version)
        setattr(tensor, _ATTRIBUTE, handle)
        self.recording.alive.append(weakref.ref(tensor))
        return handle

    def new_storage(self) -> Storage:
        """Memory that was not known before."""
        storage = Storage(len(self.recording.storages))
        self.recording.storages.append(storage)
        return storage

    def track_input(self, tensor: Tensor, name: str) -> Value:
        """Declare a tensor that the user passes in."""
        storage = self.new_storage()
        self.recording.persistent.add(storage.number)
        handle = next(self.recording.counter)
        value = self._value(tensor, storage, handle)
        self._attach(tensor, value, storage, seen=0)
        self.recording.inputs.append((value, name))
        self._remember(tensor, storage, value)
        return value

    def track_state(self, tensor: Tensor) -> None:
        """Declare memory that the program writes to in each run: what it holds is not constant."""
        self._prepare_write(tensor)
        handle = self.handle_of(tensor)
        assert handle is not None
        self.recording.persistent.add(handle.storage.number)

    def note_returned(self, constant: Const) -> None:
        """A constant leaves the program: it is to stay what it is."""
        self._note_use(Const(constant.tensor, constant.origin, Derivation.OTHER), None)

    def read(self, tensor: Tensor) -> Value | Const:
        """What a tensor holds now."""
        handle = self.handle_of(tensor)
        if handle is None:
            return self._constant(tensor)
        if (version := _version(tensor)) != handle.version:
            if version not in handle.storage.versions:
                self._note_unseen_write(tensor, handle)
            handle.version = version
        for write in handle.storage.writes[handle.seen :]:
            handle.value = self._after(handle, write)
        handle.seen = len(handle.storage.writes)
        held = handle.value
        value = held
        if held.handle != handle.number or held.storage != handle.storage.number:
            value = replace(held, storage=handle.storage.number, handle=handle.number)
        reads = self.recording.reads.setdefault(value.storage, [])
        reads.append((len(self.recording.events), value.handle))
        return value

    def _note_unseen_write(self, tensor: Tensor, handle: Handle) -> None:
        """Somebody wrote to a tensor where nobody looks, in another thread: anything is in it."""
        before = handle.value
        name = f"a write unseen in {self.call.name or 'the model'}"
        event = self._append(LOOK, (before,), {}, (), name=name, written=before)
        event.outputs = (self._commit(tensor, event),)

    def _after(self, handle: Handle, write: Write) -> Value:
        """The content of a handle after somebody wrote to (part of) its memory."""
        if write.geometry == handle.geometry:
            return write.value
        old = handle.value
        number = next(self.recording.counter)
        new = replace(old, number=number, handle=handle.number)
        args = (old, write.value, handle.geometry, write.geometry)
        self._append(OVERLAY, args, {}, (new,), name="write through a view")
        return new

    def _constant(self, tensor: Tensor) -> Const:
        known = self.derived.get(id(tensor))
        if known is not None and known[0] is tensor:
            return known[1]
        if id(tensor) not in self.owned and (owner := self._owner(tensor)) is not None:
            return Const(tensor, owner, Derivation.OTHER)  # another name for a parameter's memory
        if self._is_strange(tensor):
            self.strange = True
            if self.is_structural:
                raise self.void()
        return Const(tensor, tensor)

    def _is_strange(self, tensor: Tensor) -> bool:
        """Whether a constant may come from anywhere, out of a thread that was handed values too.

        It is neither the model's, nor lent to it, nor made by an op of the run.
        """
        known = id(tensor) in self.owned or id(tensor) in self.recording.lent_biases
        return not known and not hasattr(tensor, _MADE)

    # ----------------------------------------------------------------- events

    def _append(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Value | None, ...],
        *,
        name: str,
        written: Value | None = None,
    ) -> Event:
        number = len(self.recording.events)
        stamp = next(self.recording.counter)
        event = Event(number, target, args, kwargs, outputs, self.call, name, written, stamp)
        self.recording.events.append(event)
        self.call.items.append(event)
        for constant in constants(args, kwargs):
            self._note_use(constant, event)
            tensor = constant.tensor
            if getattr(tensor, _MADE, None) == _AT_RANDOM or not _is_readable(tensor):
                self.recording.varying.add(number)
            if self.given is not None and self.given.has_moved(constant.origin):
                # Lent for this call alone (p.data = average): not what the parameter holds.
                self.recording.varying.add(number)
                self._note_use(Const(tensor, constant.origin, Derivation.OTHER), None)
        return event

    def _note_use(self, constant: Const, event: Event | None) -> None:
        uses = self.recording.parameter_uses.setdefault(id(constant.origin), [])
        uses.append(Use(event, constant.how, self.call))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.depth:
            return func(*args, **kwargs)
        return self.run(func, args, kwargs, name=self._name_of(func))

    def _name_of(self, func: Any) -> str:
        """Where a function call is, for the reader of a report: 'relu #2 in encoder.layer1'."""
        what = _name(func).removeprefix("_").removesuffix("_")
        where = self.call.name or "the model"
        count = self.named[what, where] = self.named.get((what, where), 0) + 1
        return f"{what} in {where}" if count == 1 else f"{what} #{count} in {where}"

    def run(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str,
        written: Sequence[Tensor] | None = None,
    ) -> Any:
        """Execute an op and record it; `written` is what it writes to where no schema says so."""
        tensors = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        written = _written(func, args, kwargs) if written is None else written
        if self.lends and getattr(func, "namespace", "") not in ("aten", "prims"):
            for tensor in tensors:
                self.guard_memory(tensor)  # a schema may promise what the op does not keep
        if not any(self.handle_of(tensor) is not None for tensor in tensors) or _is_factory(func):
            return self._run_constant(func, args, kwargs, tensors, written)
        make = self.placeholders
        if make is not None and looks_at_values(func) and not _picks_by_constants(self, func, args):
            raise self.void()
        for tensor in written:
            if self._owner(tensor) is None:  # memory of the run itself: the event must not hold it
                self._prepare_write(tensor)
        recorded_args, recorded_kwargs = map_tensors(self.read, (args, kwargs))
        for tensor in written:
            self._prepare_write(tensor)
        before = self._peek(written[0]) if written else None
        result = None if make is None else op_placeholders(func, args, kwargs, make)
        if result is None:
            result = func(*args, **kwargs)
        outputs = [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]
        event = self._append(func, recorded_args, recorded_kwargs, (), name=name, written=before)
        event.outputs = tuple(self._output(output, event, tensors, written) for output in outputs)
        for tensor in written:
            if not any(tensor is output for output in outputs):
                event.outputs += (self._commit(tensor, event),)
        return result

    def _peek(self, tensor: Tensor) -> Value | None:
        handle = self.handle_of(tensor)
        return handle.value if handle else None

    def _run_constant(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor],
        written: Sequence[Tensor],
    ) -> Any:
        """Nothing here depends on the input; remember what was made of which parameter."""
        for tensor in written:
            if self._owner(tensor) is not None:
                # A counter or cache: from now on it is not the same in every run.
                self._prepare_write(tensor)
        result = func(*args, **kwargs)
        derivation = _DERIVATIONS.get(aten_name(func), Derivation.OTHER)
        self._sign(func, tensors, result)
        for tensor in tensors:
            constant = self._constant(tensor)
            if id(constant.origin) not in self.owned:
                continue
            how = constant.how.then(derivation)
            if how is Derivation.OTHER or not isinstance(result, Tensor):
                self._note_use(Const(tensor, constant.origin, Derivation.OTHER), None)
            if isinstance(result, Tensor) and result is not tensor:
                self.derived[id(result)] = (result, Const(result, constant.origin, how))
        return result

    def _sign(self, func: Any, tensors: Sequence[Tensor], result: Any) -> None:
        """Mark constants that ops make, and whether chance had a hand in them."""
        drawn = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()) or any(
            getattr(tensor, _MADE, None) == _AT_RANDOM for tensor in tensors
        )
        if drawn and not isinstance(result, Tensor) and not isinstance(result, tuple | list):
            self.recording.by_chance = True
        if not drawn and any(map(self._is_strange, tensors)):
            return
        for leaf in leaves_of(result):
            if isinstance(leaf, Tensor) and (drawn or id(leaf) not in self.owned):
                setattr(leaf, _MADE, _AT_RANDOM if drawn else _MADE)

    def undo_writes(self) -> None:
        """Give the model's own tensors the content that they had before the run."""
        for owner, content in self.saved:
            owner.copy_(content)
        forget(list(self.owned.values()) if self.saved else [])

    def _prepare_write(self, tensor: Tensor) -> None:
        """Before a write: constants become tracked memory, and the user's state is saved."""
        if self.handle_of(tensor) is not None:
            return
        owner = self._owner(tensor)
        storage = self.new_storage()
        if owner is not None:
            self.recording.persistent.add(storage.number)
            self.saved.append((owner, owner.detach().clone()))
        self.tainted[_memory(tensor)] = (tensor, storage)
        self._adopt(tensor, storage)

    def _owner(self, tensor: Tensor) -> Tensor | None:
        """The parameter or buffer whose memory this is."""
        if self.owned_storages is None:
            self.owned_storages = {_memory(owned): owned for owned in self.owned.values()}
        memory = _memory(tensor)
        return None if memory is None else self.owned_storages.get(memory)

    def _output(
        self, tensor: Tensor, event: Event, inputs: Sequence[Tensor], written: Sequence[Tensor]
    ) -> Value:
        if any(tensor is target for target in written):
            return self._commit(tensor, event)
        memory = _memory(tensor)
        for source in inputs:
            if memory is None or _memory(source) != memory:
                continue
            handle = self.handle_of(source)
            if handle is not None:
                return self._fresh(tensor, handle.storage)
        return self._fresh(tensor, self.new_storage())

    def _fresh(self, tensor: Tensor, storage: Storage) -> Value:
        handle = next(self.recording.counter)
        value = self._value(tensor, storage, handle)
        self._attach(tensor, value, storage, seen=len(storage.writes))
        self._remember(tensor, storage, value)
        return value

    def _commit(self, tensor: Tensor, event: Event) -> Value:
        """The tensor was written: its memory holds a new value."""
        handle = self.handle_of(tensor)
        assert handle is not None
        value = self._value(tensor, handle.storage, handle.number)
        handle.geometry = _geometry(tensor)  # unsqueeze_ and the like change it
        handle.storage.writes.append(Write(handle.geometry, value))
        handle.value = value
        handle.seen = len(handle.storage.writes)
        if (version := _version(tensor)) is not None:
            handle.storage.versions |= {version, version + 1}  # an op counts when it has returned
        return value

    # ----------------------------------------------------------------- modules

    def enter(self, module: nn.Module) -> Call:
        """A module call begins."""
        name = self.names.get(id(module), type(module).__name__)
        call = Call(module, name, self.call)
        self.call.items.append(call)
        self.recording.calls.setdefault(id(module), []).append(call)
        self.call = call
        return call

    def values_of(self, tree: Any) -> tuple[Value, ...]:
        """The values among nested arguments or results."""
        contents = (self.read(leaf) for leaf in leaves_of(tree) if isinstance(leaf, Tensor))
        return tuple(value for value in contents if isinstance(value, Value))

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        """What runs inside is not written down, and does not pay for being asked about."""
        on_top = _get_current_dispatch_mode() is self
        self.depth += 1
        try:
            with _pop_mode_temporarily() if on_top else nullcontext():
                yield
        finally:
            self.depth -= 1

    def note_look(self, tensor: Tensor) -> None:
        """The program takes values out of a tensor: they may go anywhere."""
        value = self.read(tensor)
        if isinstance(value, Value):
            self._append(LOOK, (value,), {}, (), name=f"a look at values in {self.call.name}")

    def note_handed_out(self, tensor: Tensor) -> None:
        """The program takes a constant out of PyTorch: a parameter must not be edited then."""
        owner = tensor if id(tensor) in self.owned else self._owner(tensor)
        known = self.derived.get(id(tensor))
        if owner is None and known is not None and known[0] is tensor:
            owner = known[1].origin
        if owner is not None:
            self._note_use(Const(tensor, owner, Derivation.OTHER), None)

    def guard_memory(self, tensor: Tensor) -> None:
        """Nobody may get hold of memory through which the original can be written to unseen."""
        if self.lends and isinstance(self._owner(tensor), nn.Parameter):
            self.has_lent = True
            raise NeedsMemory

    def lose(self, module: nn.Module) -> None:
        """A part of the model runs where nobody looks: in another thread."""
        if id(module) in self.recording.members:
            self.recording.lost.append(module)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._note_use(Const(tensor, tensor, Derivation.OTHER), None)

    def takes_as_leaf(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Whether this call can be recorded as one event."""
        return (
            len(args) == 1
            and not kwargs
            and isinstance(args[0], Tensor)
            and is_leaf(module)
            and not self._is_overruled()
            and self.handle_of(args[0]) is not None
            and (isinstance(module, BATCH_NORMS) or not self._is_reset(module))
        )

    def _is_overruled(self) -> bool:
        """Whether a mode that the program opened may make something else of what a module asks."""
        if _get_current_dispatch_mode() is not self:
            return True
        opened = _function_modes()[self.function_modes :]
        return any(not isinstance(mode, DeviceContext) for mode in opened)

    def _is_reset(self, module: nn.Module) -> bool:
        """Whether it computes something else now than what it says when the run is over."""
        return self.given is not None and self.given.has_reset(module)

    def run_leaf(
        self, module: nn.Module, call: Call, forward: Any, tensor: Tensor, source: Value
    ) -> Tensor:
        """Execute a module that is understood as a whole and record it as one event."""
        in_place = bool(getattr(module, "inplace", False))
        # What it computes with, as it is at the time of the call.
        own = itertools.chain(module._parameters.items(), module._buffers.items())
        arguments = {name: self.read(tensor) for name, tensor in own if tensor is not None}
        if in_place:
            self._prepare_write(tensor)
        with self._unrecorded():
            make = self.placeholders
            known = None if make is None else module_placeholder(module, tensor, make)
            result: Tensor = forward(module, tensor) if known is None else known
        event = self._append(
            module, (source,), arguments, (), name=call.name, written=source if in_place else None
        )
        if self._is_reset(module):
            self.recording.varying.add(event.number)
        call.inputs, call.single = (source,), True
        if not in_place:
            event.outputs = call.outputs = (self._output(result, event, [tensor], []),)
            return result
        event.outputs = call.outputs = (self._commit(tensor, event),)
        return self.renamed(tensor)

    def renamed(self, tensor: Tensor) -> Tensor:
        """A new name for memory that was just written to.

        Later reads through the old name show that the program counts on the write, so that the op
        must stay in place.
        """
        with self._unrecorded():
            alias = tensor.view_as(tensor)
        handle = self.handle_of(tensor)
        assert handle is not None
        value = replace(handle.value, handle=next(self.recording.counter))
        self._attach(alias, value, handle.storage, seen=len(handle.storage.writes))
        return alias


def _picks_by_constants(recorder: Recorder, func: Any, args: tuple[Any, ...]) -> bool:
    """x[indices] where the indices are constants, whose values are real in any run."""
    return aten_name(func) == "index" and not any(
        recorder.handle_of(leaf) is not None
        for leaf in leaves_of(args[1:])
        if isinstance(leaf, Tensor)
    )


def _memory(tensor: Tensor) -> int | None:
    """A number for the memory a tensor lives in; None where that cannot be told (vmap, sparse)."""
    try:
        return int(_storage_of(tensor)._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def _version(tensor: Tensor) -> int | None:
    """How often somebody wrote to it; None where PyTorch does not count (inference mode)."""
    return None if tensor.is_inference() else tensor._version


def _is_readable(tensor: Tensor) -> bool:
    """Whether NumPy could read it: not inside torch.func, no subclass, not sparse."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) and not isinstance(tensor, nn.Buffer):
        return False
    return not tensor.is_meta and tensor.layout is torch.strided


def address_of(tensor: Tensor) -> int | None:
    """Where the memory begins that a tensor lives in; None where it has none."""
    try:
        return int(_storage_of(tensor).data_ptr()) or None
    except (NotImplementedError, RuntimeError):
        return None


def _geometry(tensor: Tensor) -> Geometry:
    return int(tensor.storage_offset()), tuple(shape_of(tensor)), strides_of(tensor)


def _name(func: Any) -> str:
    return str(getattr(func, "_opname", func))


_DERIVATIONS = {
    "t": Derivation.TRANSPOSED,
    "detach": Derivation.ITSELF,
    "alias": Derivation.ITSELF,
    "sign": Derivation.SIGNS,
    "view": Derivation.RESHAPED,
    "_unsafe_view": Derivation.RESHAPED,
    "unsqueeze": Derivation.RESHAPED,
}
"""Computations on a parameter that leave it editable, and what they make of it."""


def _is_factory(func: Any) -> bool:
    return aten_name(func) in FACTORIES


_STATISTICS_WRITERS = {"native_batch_norm", "batch_norm", "cudnn_batch_norm"}
"""(input, weight, bias, mean, var, training, ...): in training they update mean and var unsaid."""
_WRITES: dict[Any, tuple[int, ...] | None] = {}


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes to."""
    if aten_name(func) in _STATISTICS_WRITERS and args[5]:
        return [tensor for tensor in args[3:5] if tensor is not None]
    positions = _WRITES.get(func)
    schema = getattr(func, "_schema", None)
    if positions is None and func not in _WRITES:
        if schema is None or not schema.is_mutable:
            _WRITES[func] = None
        else:
            positions = tuple(
                index
                for index, argument in enumerate(schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            )
            _WRITES[func] = positions
    if not positions or schema is None:
        return []
    written = []
    for index in positions:
        name = schema.arguments[index].name
        argument = args[index] if index < len(args) else kwargs.get(name)
        written += [leaf for leaf in pytree.tree_leaves(argument) if isinstance(leaf, Tensor)]
    return written


@contextmanager
def module_calls(recorder: Recorder) -> Iterator[None]:
    """While this is open, calls of modules are told to the recorder."""
    original = nn.Module.__call__
    thread = threading.get_ident()  # the patch is global; other threads go on as before

    def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            recorder.lose(module)
            return original(module, *args, **kwargs)
        if recorder.depth:
            return original(module, *args, **kwargs)
        outer = recorder.call
        is_leaf_call = recorder.takes_as_leaf(module, args, kwargs)
        # Read before the call begins: catching up with writes is the caller's doing.
        inputs = recorder.values_of(args[0] if is_leaf_call else (args, kwargs))
        call = recorder.enter(module)
        try:
            if is_leaf_call:
                return recorder.run_leaf(module, call, original, args[0], inputs[0])
            call.inputs = inputs
            result = original(module, *args, **kwargs)
            call.outputs = recorder.values_of(result)
            call.single = len(call.inputs) == 1 and isinstance(result, Tensor)
            return result
        finally:
            recorder.call = outer

    nn.Module.__call__ = call_module  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


def escaped(recorder: Recorder, known: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the run that somebody still holds, apart from those that are known.

    Attributes of the model, closures, lists that a hook fills, containers of the user's own: what
    is reachable after the run may be read.
    """
    recorder.tainted.clear()
    expected = {id(tensor) for tensor in known}

    def find() -> list[Tensor]:
        tensors = (reference() for reference in recorder.recording.alive)
        unique = {id(t): t for t in tensors if t is not None and id(t) not in expected}
        return list(unique.values())

    if find():
        gc.collect()  # what only a reference cycle holds is not reachable
    return find()


def forget(tree: Any) -> None:
    """Remove the recorder's marks from the user's tensors."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and hasattr(leaf, _ATTRIBUTE):
            delattr(leaf, _ATTRIBUTE)
