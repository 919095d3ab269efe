"""Which value each tensor holds that depends on the input, through writes in place and views.

A write gives the memory a new value. Whoever reads it through another tensor gets the old content
with the part that was written laid over it, so the events form a graph without side effects. A
tensor object is known by the handle that it carries, one that nobody was seen to make by the memory
that it lives in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bnfold.frontends.torch.constants import Constants
from bnfold.frontends.torch.ledger import Ledger
from bnfold.frontends.torch.recording import (
    LOOK,
    OVERLAY,
    Const,
    Event,
    Handle,
    Storage,
    Value,
    Write,
)
from bnfold.frontends.torch.sizes_asked import shape_of, strides_of
from bnfold.frontends.torch.tensor_facts import (
    HANDLE,
    address_of,
    forget,
    geometry_of,
    memory_of,
    storage_of,
    version_of,
)


class TensorValues:
    """The tensors of one run that depend on the input."""

    def __init__(self, ledger: Ledger, constants: Constants) -> None:
        self.ledger = ledger
        self.constants = constants
        self.recording = ledger.recording
        self.tainted: dict[int | None, tuple[Tensor, Storage]] = {}
        """Per memory that was constant and has been written to: a tensor over it."""
        self.memories: dict[int, tuple[StorageWeakRef, Storage, Value]] = {}
        """Per address: memory that depends on the input, whatever tensor objects share it."""
        self.saved: list[tuple[Tensor, Tensor]] = []
        """The model's own tensors that were written to, with their content before."""

    # ----------------------------------------------------------------- handles

    def handle_of(self, tensor: Tensor) -> Handle | None:
        """The handle of a tensor that depends on the input."""
        handle = getattr(tensor, HANDLE, None)
        if isinstance(handle, Handle) and handle.recording is self.recording:
            return handle
        if self.tainted:
            known = self.tainted.get(memory_of(tensor))
            if known is not None:
                return self._adopt(tensor, known[1])
        if id(tensor) in self.constants.owned or not self.memories:
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
        event = self._append_look(held)
        event.outputs = (self._fresh(tensor, storage),)
        return getattr(tensor, HANDLE)  # type: ignore[no-any-return]

    def _append_look(self, held: tuple[Value, ...]) -> Event:
        name = f"a look at values in {self.ledger.call.name}"
        return self.ledger.append(LOOK, held, {}, (), name=name)

    def note_look(self, tensor: Tensor) -> None:
        """The program takes values out of a tensor: they may go anywhere."""
        value = self.read(tensor)
        if isinstance(value, Value):
            self._append_look((value,))

    def _remember(self, tensor: Tensor, storage: Storage, value: Value) -> None:
        address = address_of(tensor)
        if address is None:
            return
        known = self.memories.get(address)
        if known is None or known[1] is not storage or known[0].expired():  # type: ignore[no-untyped-call]
            reference = StorageWeakRef(storage_of(tensor))  # type: ignore[no-untyped-call]
            self.memories[address] = (reference, storage, value)

    def _adopt(self, tensor: Tensor, storage: Storage) -> Handle:
        """A constant whose memory was written to: its old content is stored as it is."""
        value = self._value(tensor, storage, -1)
        return self.attach(tensor, value, storage, seen=0)

    def _value(self, tensor: Tensor, storage: Storage, handle: int) -> Value:
        number = next(self.recording.counter)
        shape, strides = tuple(shape_of(tensor)), strides_of(tensor)
        return Value(number, shape, strides, tensor.dtype, tensor.device, storage.number, handle)

    def attach(self, tensor: Tensor, value: Value, storage: Storage, *, seen: int) -> Handle:
        """Say which value a tensor holds; `seen` is how many writes to its memory are in there."""
        number = value.handle if value.handle >= 0 else next(self.recording.counter)
        version = version_of(tensor)
        handle = Handle(number, self.recording, value, storage, geometry_of(tensor), seen, version)
        setattr(tensor, HANDLE, handle)
        self.recording.alive.append(weakref.ref(tensor))
        return handle

    def _new_storage(self) -> Storage:
        """Memory that was not known before."""
        storage = Storage(len(self.recording.storages))
        self.recording.storages.append(storage)
        return storage

    def track_input(self, tensor: Tensor, name: str) -> Value:
        """Declare a tensor that the user passes in."""
        storage = self._new_storage()
        self.recording.persistent.add(storage.number)
        handle = next(self.recording.counter)
        value = self._value(tensor, storage, handle)
        self.attach(tensor, value, storage, seen=0)
        self.recording.inputs.append((value, name))
        self._remember(tensor, storage, value)
        return value

    def track_state(self, tensor: Tensor) -> None:
        """Declare memory that the program writes to in each run: what it holds is not constant."""
        self.prepare_write(tensor)
        handle = self.handle_of(tensor)
        assert handle is not None
        self.recording.persistent.add(handle.storage.number)

    # ----------------------------------------------------------------- reading

    def read(self, tensor: Tensor) -> Value | Const:
        """What a tensor holds now."""
        handle = self.handle_of(tensor)
        if handle is None:
            return self.constants.of(tensor)
        if (version := version_of(tensor)) != handle.version:
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

    def peek(self, tensor: Tensor) -> Value | None:
        """What a tensor held when it was last read."""
        handle = self.handle_of(tensor)
        return handle.value if handle else None

    def _note_unseen_write(self, tensor: Tensor, handle: Handle) -> None:
        """Somebody wrote to a tensor where nobody looks, in another thread: anything is in it."""
        before = handle.value
        name = f"a write unseen in {self.ledger.call.name or 'the model'}"
        event = self.ledger.append(LOOK, (before,), {}, (), name=name, written=before)
        event.outputs = (self.commit(tensor, event),)

    def note_exchange(self, tensor: Tensor) -> None:
        """`tensor.data = other`: it lies elsewhere now. That counts as a write to where it lay, as
        what shares the tensor with it, once a step is gone, is exchanged as well."""
        handle = self.handle_of(tensor)
        if handle is None:
            return
        before = handle.value
        name = f"an exchange of memory in {self.ledger.call.name or 'the model'}"
        event = self.ledger.append(LOOK, (before,), {}, (), name=name, written=before)
        event.outputs = (self.commit(tensor, event),)
        if self._alias(tensor) is None:
            event = self._append_look((before,))
            event.outputs = (self._fresh(tensor, self._new_storage()),)

    def note_handed_back(self, tensor: Tensor) -> None:
        """`tensor.contiguous()` is the tensor itself, which in another layout it is not."""
        handle = self.handle_of(tensor)
        if handle is not None:
            self.recording.handed_back.add(handle.storage.number)

    def _after(self, handle: Handle, write: Write) -> Value:
        """The content of a handle after somebody wrote to (part of) its memory."""
        if write.geometry == handle.geometry:
            return write.value
        old = handle.value
        number = next(self.recording.counter)
        new = replace(old, number=number, handle=handle.number)
        args = (old, write.value, handle.geometry, write.geometry)
        self.ledger.append(OVERLAY, args, {}, (new,), name="write through a view")
        return new

    # ----------------------------------------------------------------- writing

    def prepare_write(self, tensor: Tensor) -> None:
        """Before a write: constants become tracked memory, and the user's state is saved."""
        if self.handle_of(tensor) is not None:
            return
        owner = self.constants.owner(tensor)
        storage = self._new_storage()
        if owner is not None:
            self.recording.persistent.add(storage.number)
            self.saved.append((owner, owner.detach().clone()))
        self.tainted[memory_of(tensor)] = (tensor, storage)
        self._adopt(tensor, storage)

    def undo_writes(self, *, is_left: Callable[[Tensor], bool] | None = None) -> None:
        """Give the model's own tensors the content that they had before, but what may be left."""
        for owner, content in self.saved:
            if is_left is not None and is_left(owner):
                continue
            if owner.shape == content.shape:
                owner.copy_(content)
            else:  # resized: where that failed half-way, there is no memory for its new shape
                owner.data = content
        forget(list(self.constants.owned.values()) if self.saved else [])

    def output(
        self, tensor: Tensor, event: Event, inputs: Sequence[Tensor], written: Sequence[Tensor]
    ) -> Value:
        """What an op made: in the memory of what it wrote to or looked at, or in its own."""
        if any(tensor is target for target in written):
            return self.commit(tensor, event)
        memory = memory_of(tensor)
        for source in inputs:
            if memory is None or memory_of(source) != memory:
                continue
            handle = self.handle_of(source)
            if handle is not None:
                if handle.version is not None:  # a view counts along, once PyTorch has made it one
                    handle.storage.versions.add(handle.version)
                return self._fresh(tensor, handle.storage)
        return self._fresh(tensor, self._new_storage())

    def _fresh(self, tensor: Tensor, storage: Storage) -> Value:
        handle = next(self.recording.counter)
        value = self._value(tensor, storage, handle)
        self.attach(tensor, value, storage, seen=len(storage.writes))
        self._remember(tensor, storage, value)
        return value

    def commit(self, tensor: Tensor, event: Event) -> Value:
        """The tensor was written: its memory holds a new value."""
        handle = self.handle_of(tensor)
        assert handle is not None
        value = self._value(tensor, handle.storage, handle.number)
        handle.geometry = geometry_of(tensor)  # unsqueeze_ and the like change it
        handle.storage.writes.append(Write(handle.geometry, value))
        handle.value = value
        handle.seen = len(handle.storage.writes)
        if (version := version_of(tensor)) is not None:
            handle.storage.versions |= {version, version + 1}  # an op counts when it has returned
        return value
