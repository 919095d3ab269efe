"""Run a PyTorch program once and write down what happened to the values that depend on the input.

Calls of modules that are understood as a whole (Conv2d, BatchNorm2d, ReLU, ...) are one event each;
everything else is recorded as the ATen ops that it dispatches. Tensors that do not depend on the
input are constants and appear only as arguments.

In-place writes are resolved here: every read gets the value that the memory held at that time, also
through views (`tensor_values`). Who shares memory with whom is kept too, for the hazard that a
removed op leaves two names for one tensor (`aliasing`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _pop_mode_temporarily,
)

from bnfold.frontends.torch.constants import Constants
from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, is_leaf
from bnfold.frontends.torch.ledger import Ledger
from bnfold.frontends.torch.op_effects import is_factory, written_by
from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.recording import (
    Call,
    Handle,
    Recording,
    Value,
    leaves_of,
    map_tensors,
)
from bnfold.frontends.torch.settings import Given
from bnfold.frontends.torch.structure_run import (
    Placeholders,
    looks_at_values,
    module_placeholder,
    op_placeholders,
)
from bnfold.frontends.torch.tensor_facts import HANDLE
from bnfold.frontends.torch.tensor_values import TensorValues


def _function_modes() -> list[Any]:
    """Those that are open, the innermost last."""
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs the ops and modules of a program, and writes down what they do."""

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
        self.ledger = Ledger(recording, names, given, structural=structural)
        self.constants = Constants(self.ledger, lends=lends)
        self.values = TensorValues(self.ledger, self.constants)
        self.placeholders = Placeholders() if structural else None
        """What is heavy returns one of these instead of computing; see `structure_run`."""
        self.depth = 0
        """Above 0: inside a leaf, nothing is recorded."""
        self.function_modes = len(_function_modes())
        """How many were open before."""

    def knows(self, tensor: Tensor) -> bool:
        """Whether the program asks about a tensor that was seen to depend on the input."""
        return not self.depth and isinstance(getattr(tensor, HANDLE, None), Handle)

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

    # ----------------------------------------------------------------- ops

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
        return self.run(func, args, kwargs, name=self.ledger.name_of(func))

    def run(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str,
        written: Sequence[Tensor] | None = None,
        renames: bool = False,
    ) -> Any:
        """Execute an op and record it; `written` is what it writes to where no schema says so.

        With `renames`, a tensor that comes back as it was given, as from a dropout at inference,
        has a name of its own: not all that read the one read the other.
        """
        values, constants = self.values, self.constants
        tensors = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        written = written_by(func, args, kwargs) if written is None else written
        if constants.lends and getattr(func, "namespace", "") not in ("aten", "prims"):
            for tensor in tensors:
                constants.guard_memory(tensor)  # a schema may promise what the op does not keep
        if not any(values.handle_of(tensor) is not None for tensor in tensors) or is_factory(func):
            return self._run_constant(func, args, kwargs, tensors, written)
        make = self.placeholders
        if make is not None and looks_at_values(func) and not self._picks_by_constants(func, args):
            raise self.ledger.void()
        is_new = bool(written) and values.handle_of(written[0]) is None
        zeros = constants.zeros_added_to(func, args) if is_new else None
        for tensor in written:
            if constants.owner(tensor) is None:  # the run's own memory: the event must not hold it
                values.prepare_write(tensor)
        recorded_args, recorded_kwargs = map_tensors(values.read, (args, kwargs))
        if zeros is not None:
            recorded_args = (zeros, *recorded_args[1:])
        for tensor in written:
            values.prepare_write(tensor)
        before = values.peek(written[0]) if written else None
        result = None if make is None else op_placeholders(func, args, kwargs, make)
        if result is None:
            result = func(*args, **kwargs)
        if renames and not written and any(result is tensor for tensor in tensors):
            with self._unrecorded():
                result = result.view_as(result)
        outputs = [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]
        event = self.ledger.append(
            func, recorded_args, recorded_kwargs, (), name=name, written=before
        )
        event.outputs = tuple(values.output(output, event, tensors, written) for output in outputs)
        for tensor in written:
            if not any(tensor is output for output in outputs):
                event.outputs += (values.commit(tensor, event),)
        return result

    def _picks_by_constants(self, func: Any, args: tuple[Any, ...]) -> bool:
        """x[indices] where the indices are constants, whose values are real in any run."""
        return aten_name(func) == "index" and not any(
            self.values.handle_of(leaf) is not None
            for leaf in leaves_of(args[1:])
            if isinstance(leaf, Tensor)
        )

    def _run_constant(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor],
        written: Sequence[Tensor],
    ) -> Any:
        """Nothing here depends on the input."""
        for tensor in written:
            if self.constants.owner(tensor) is not None:
                # A counter or cache: from now on it is not the same in every run.
                self.values.prepare_write(tensor)
        result = func(*args, **kwargs)
        self.recording.is_told_constants |= isinstance(result, bool | int | float | complex)
        # What a factory takes the shape of may depend on the input.
        constants = [tensor for tensor in tensors if self.values.handle_of(tensor) is None]
        self.constants.note_result(func, args, constants, result)
        return result

    # ----------------------------------------------------------------- modules

    def values_of(self, tree: Any) -> tuple[Value, ...]:
        """The values among nested arguments or results."""
        contents = (self.values.read(leaf) for leaf in leaves_of(tree) if isinstance(leaf, Tensor))
        return tuple(value for value in contents if isinstance(value, Value))

    def takes_as_leaf(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Whether this call can be recorded as one event."""
        return (
            len(args) == 1
            and not kwargs
            and isinstance(args[0], Tensor)
            and is_leaf(module)
            and not self._is_overruled()
            and self.values.handle_of(args[0]) is not None
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
        return self.ledger.given is not None and self.ledger.given.has_reset(module)

    def run_leaf(
        self, module: nn.Module, call: Call, forward: Any, tensor: Tensor, source: Value
    ) -> Tensor:
        """Execute a module that is understood as a whole and record it as one event."""
        values = self.values
        in_place = bool(getattr(module, "inplace", False))
        # What it computes with, as it is at the time of the call.
        own = itertools.chain(module._parameters.items(), module._buffers.items())
        arguments = {name: values.read(tensor) for name, tensor in own if tensor is not None}
        if in_place:
            values.prepare_write(tensor)
        with self._unrecorded():
            make = self.placeholders
            known = None if make is None else module_placeholder(module, tensor, make)
            result: Tensor = forward(module, tensor) if known is None else known
        event = self.ledger.append(
            module, (source,), arguments, (), name=call.name, written=source if in_place else None
        )
        if self._is_reset(module):
            self.recording.varying.add(event.number)
        call.inputs, call.single = (source,), True
        if not in_place:
            event.outputs = call.outputs = (values.output(result, event, [tensor], []),)
            return result
        event.outputs = call.outputs = (values.commit(tensor, event),)
        return self.renamed(tensor)

    def renamed(self, tensor: Tensor) -> Tensor:
        """A new name for memory that was just written to.

        Later reads through the old name show that the program counts on the write, so that the op
        must stay in place.
        """
        with self._unrecorded():
            alias = tensor.view_as(tensor)
        handle = self.values.handle_of(tensor)
        assert handle is not None
        value = replace(handle.value, handle=next(self.recording.counter))
        self.values.attach(alias, value, handle.storage, seen=len(handle.storage.writes))
        return alias
