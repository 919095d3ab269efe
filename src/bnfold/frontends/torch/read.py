"""Read a module: run it on the example inputs and write down what it does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from bnfold.errors import ExampleInputError, TrainingModeError, UnsupportedModelError
from bnfold.frontends.torch.code_names import may_start_threads
from bnfold.frontends.torch.copies import Snapshot
from bnfold.frontends.torch.entries import (
    Entry,
    as_entry,
    call,
    method,
    own_containers,
    result_of,
    split_inputs,
    takes_numbers,
)
from bnfold.frontends.torch.example_inputs import not_taken
from bnfold.frontends.torch.exchanges import exchanges_heard
from bnfold.frontends.torch.failed_run import error_to_raise
from bnfold.frontends.torch.garbage import old_objects_set_aside
from bnfold.frontends.torch.handed_back import hand_backs_heard
from bnfold.frontends.torch.leaf_modules import is_observed
from bnfold.frontends.torch.left_behind import Traces, moved, traces_of
from bnfold.frontends.torch.looks import asks_for_values
from bnfold.frontends.torch.module_calls import module_calls
from bnfold.frontends.torch.opened_inputs import closed, unopened
from bnfold.frontends.torch.outputs import (
    besides_tensors,
    escaped,
    note_escaped,
    note_handed_out,
    note_outputs,
    tensors_in,
)
from bnfold.frontends.torch.record import Recorder
from bnfold.frontends.torch.recording import Recording
from bnfold.frontends.torch.resizing import places
from bnfold.frontends.torch.restorable import Restorable
from bnfold.frontends.torch.restoring import biases_lent, contents_of, own_tensors
from bnfold.frontends.torch.settings import Given
from bnfold.frontends.torch.shadow import NeedsMemory, Shadow, shadow_of, translate_back
from bnfold.frontends.torch.sizes_asked import sizes_heard
from bnfold.frontends.torch.state import counts, mark_varying, may_vary, other_values, snapshot
from bnfold.frontends.torch.structure_run import NeedsValues, values_guarded
from bnfold.frontends.torch.surroundings import Surroundings
from bnfold.frontends.torch.tensor_facts import address_of, forget, is_equal

MOST_RUNS = 12
"""So often in a row a module is run that is other after each run."""
_MOST_NAMED = 3
_FEW_ANSWERS, _MANY_ANSWERS = 10_000, 100_000
_COMPILED = "torch._dynamo.eval_frame"
_ONE_AT_A_TIME = threading.RLock()


def read_module(
    model: nn.Module,
    runs: Sequence[Any],
    *,
    like: Recording | None = None,
    given: int | None = None,
    surroundings: Restorable | None = None,
) -> Recording:
    """Run `model` once per example input and record it. The model is left as it was.

    `like` is another reading of the same module, whose way of running is good enough: without
    values if that was, and once, as what is state is known. `given` says how many of the runs are
    the user's own, if not all are; `surroundings` what lies outside of the modules, if that was
    noted: it is put back after each reading, also one that is thrown away.

    Raises TrainingModeError, UnsupportedModelError, or ExampleInputError if the model raises.
    """
    _check(model)
    modules = list(model.modules())
    names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
    # The run patches nn.Module and Tensor: one thread at a time.
    rng = torch.random.fork_rng(devices=[])
    with _ONE_AT_A_TIME, old_objects_set_aside(), torch.no_grad(), rng:
        plan = _Plan(
            runs,
            len(runs) if given is None else given,
            again=like is None,
            most_answers=_MANY_ANSWERS
            if like is None
            else _FEW_ANSWERS + 10 * len(like.asked.answers),
            may_break_off=not may_start_threads(modules),
            surroundings=surroundings or Surroundings(model),
        )
        # A hook is the user's code and must see real values.
        is_plain = plan.may_break_off and not any(is_observed(module) for module in modules)
        if is_plain and (like is None or like.is_structural):
            try:
                return _read(model, modules, names, plan, structural=True)
            except NeedsValues:
                pass
            except Exception as error:
                if like is not None:  # these sizes are not taken
                    raise ExampleInputError(type(model).__name__, error) from error
        # Whatever went wrong without values: only a real run can say what the model does.
        if like is None or like.is_told:
            before = None if is_plain else Snapshot(modules)  # a hook may reach the original
            try:
                return _read(model, modules, names, plan, structural=False)
            except NeedsValues:  # it asks for sizes on and on
                pass
            except Exception as error:
                if like is not None:
                    raise ExampleInputError(type(model).__name__, error) from error
            if before is not None:
                before.restore()
        try:
            return _read(model, modules, names, replace(plan, tells=False), structural=False)
        except ExampleInputError as error:
            if like is not None:
                raise
            raise error_to_raise(
                error, model, [partial(call, run=run) for run in runs]
            ) from error.cause


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be run."""

    runs: Sequence[Any]
    given: int
    """How many of them are the user's."""
    again: bool
    """Whether to run them again, to see what is other then."""
    most_answers: int
    """So many questions about sizes it may ask."""
    may_break_off: bool
    """Whether nothing of a run goes on where the rest of it is left out."""
    surroundings: Restorable
    """What the runs share with each other, and a reading with no other."""
    tells: bool = True
    """Whether sizes are numbers that note what becomes of them."""

    def prefix(self, number: int) -> str:
        """What stands before the names of a run's inputs and outputs."""
        if number >= self.given:
            return "on other sizes: "
        return "" if self.given == 1 else f"run {number}: "


def _read(
    model: nn.Module,
    modules: list[nn.Module],
    names: dict[int, str],
    plan: _Plan,
    *,
    structural: bool,
) -> Recording:
    """Run a copy, and run it again to see what the first run changed for the next."""
    for own_memory in (False, True) if plan.may_break_off else (True,):
        shadow = shadow_of(model, modules, own_memory=own_memory)
        named = {id(part): names.get(id(shadow.original(part)), "") for part in shadow.modules}
        given = Given([*modules, *shadow.modules], address_of)
        reader = _Reader(shadow, {**names, **named}, given)
        try:
            with plan.surroundings.restoring():
                recording = reader.read(plan, structural=structural)
        except NeedsMemory:
            continue
        translate_back(recording, shadow)
        return recording
    raise AssertionError("a copy with memory of its own was not enough")


def _random_states() -> list[Any]:
    """Where Python's and NumPy's random numbers stand, as values that can be compared."""
    numpy = pytree.tree_leaves(np.random.get_state(legacy=False))
    plain = [leaf.tobytes() if isinstance(leaf, np.ndarray) else leaf for leaf in numpy]
    return [random.getstate(), *plain]


def _check(model: nn.Module) -> None:
    if type(model).__module__ == _COMPILED:
        raise UnsupportedModelError(
            "the module is compiled", "fold the original module, then compile the result"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "the module is a TorchScript module", "fold the Python module it was made from"
        )
    tensors = (*model.parameters(), *model.buffers())
    if any(is_lazy(tensor) for tensor in tensors):
        raise UnsupportedModelError(
            "the module has parameters that are not initialised yet", "run it once, then fold it"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise UnsupportedModelError(
            "the module has parameters on the meta device, without content", "load its weights"
        )
    parameters = list(model.parameters())
    if parameters and all(isinstance(tensor, FakeTensor) for tensor in parameters):
        raise UnsupportedModelError(
            "the module has parameters without content, made under a FakeTensorMode",
            "build it outside of that, and load its weights",
        )
    if isinstance(model, torch.fx.GraphModule) and "eval" in model.__dict__:
        raise UnsupportedModelError(
            "the module was made of an exported program, whose ops are no modules",
            "fold the program itself, then call module() on the result",
        )
    if model.training:
        raise TrainingModeError(type(model).__name__)


@dataclass(frozen=True, slots=True)
class _Reader:
    """One model, to be run on all example inputs."""

    shadow: Shadow
    names: dict[int, str]
    """What modules are called, by id()."""
    given: Given

    @property
    def model(self) -> nn.Module:
        """What is run."""
        return self.shadow.model

    @property
    def modules(self) -> list[nn.Module]:
        """The model and everything in it."""
        return self.shadow.modules

    @property
    def members(self) -> dict[int, nn.Module]:
        """What runs and what it stands for, which code outside of the copy meets."""
        parts = (part for own in self.modules for part in (own, self.shadow.original(own)))
        return {id(part): part for part in parts}

    def read(self, plan: _Plan, *, structural: bool) -> Recording:
        """Record all runs."""
        if self.shadow.is_copy:
            return self._read(plan, structural=structural)
        with Snapshot(self.modules).restoring():
            for module in self.modules:
                vars(module).pop("_compiled_call_impl", None)  # a copy has none either
            return self._read(plan, structural=structural)

    def _read(self, plan: _Plan, *, structural: bool) -> Recording:
        before, random_states = snapshot(self.modules), _random_states()
        # What is run itself holds the very tensors that are compared: keep what was in them.
        kept = [] if self.shadow.is_copy or not plan.again else contents_of(self.modules)
        traces = [self._traces(structural=structural)] if plan.again else []
        recording, recorders = self._record(plan, structural=structural)
        recording.is_structural, recording.is_told = structural, plan.tells
        if recording.by_chance or random_states != _random_states():
            # A path or a number that was drawn: no number of runs tells what it can be.
            recording.varying.update(event.number for event in recording.events)
            return recording
        recording.counts = any(counts(now, was) for now, was in before) or any(
            counts(vars(module), vars(self.shadow.original(module)))
            for module in self.modules
            if not isinstance(module, torch.jit.ScriptModule)
        )
        if not plan.again:
            return recording
        is_copy = self.shadow.is_copy
        traces.append(self._traces(structural=structural))
        may_differ = moved(*traces) or may_vary(recording, recorders, self.shadow, before)
        if is_copy and not may_differ:
            return recording
        changed = self._changed(recorders, kept)
        strange = any(recorder.constants.strange for recorder in recorders)
        second, recorders = self._record(plan, structural=structural, other_inputs=strange)
        mark_varying(recording, second, changed, self.shadow, moved=strange)
        traces.append(self._traces(structural=structural))
        changed |= self._changed(recorders, kept)
        if moved(*traces[-2:], values=recording.is_told_constants) or (
            changed and asks_for_values(recording)
        ):
            self._read_on(plan, recording, traces, kept, structural=structural)
        return recording

    def _read_on(
        self,
        plan: _Plan,
        recording: Recording,
        traces: list[Traces],
        kept: list[tuple[Tensor, Tensor]],
        *,
        structural: bool,
    ) -> None:
        """Run it until it is left as it was once before, or often enough."""
        while len(traces) <= MOST_RUNS:
            try:
                later, recorders = self._record(plan, structural=structural)
            except ExampleInputError:  # as often it cannot be run
                break
            changed = self._changed(recorders, kept)
            mark_varying(recording, later, changed, self.shadow, moved=False)
            now = self._traces(structural=structural)
            recording.rounds = len(traces)
            asks = recording.is_told_constants
            is_known = now in traces if asks else now.state in [each.state for each in traces]
            if is_known and not asks_for_values(recording):
                return
            traces.append(now)
        recording.counts = True
        recording.unsettled = tuple(
            moved(*traces[-2:], values=recording.is_told_constants)[:_MOST_NAMED]
        )

    def _is_left(self, recorder: Recorder, tensor: Tensor) -> bool:
        """Whether a run may leave what it wrote to a tensor of the model for the next one."""
        if not self.shadow.is_copy or isinstance(tensor, nn.Parameter):
            return False
        return not (recorder.ledger.is_structural and tensor.is_floating_point())

    def _traces(self, *, structural: bool) -> Traces:
        return traces_of(dict(self.model.named_modules()), are_real=not structural)

    def _changed(
        self, recorders: Sequence[Recorder], kept: Sequence[tuple[Tensor, Tensor]]
    ) -> set[int]:
        """id() of the original's tensors that hold something else now."""
        changed = self.shadow.changed()
        changed += [tensor for tensor, content in kept if _is_written(tensor, content)]
        changed += [self.shadow.original(t) for r in recorders for t, _ in r.values.saved]
        return {id(tensor) for tensor in changed}

    def _record(
        self, plan: _Plan, *, structural: bool, other_inputs: bool = False
    ) -> tuple[Recording, list[Recorder]]:
        recording = Recording(
            owned=own_tensors(self.modules), members=frozenset(map(id, self.modules))
        )
        recording.asked.most = plan.most_answers
        if plan.again and plan.tells:  # what asks so often is run with plain numbers, and ends
            recording.asked.too_many = NeedsValues
        recorders = []
        with biases_lent(self.modules, recording):
            for number, run in enumerate(plan.runs):
                lends = self.shadow.shares_memory
                recorder = Recorder(
                    recording,
                    self.names,
                    structural=structural,
                    lends=lends,
                    given=self.given,
                )
                recorders.append(recorder)
                entry = as_entry(run)
                if other_inputs:
                    entry = replace(entry, inputs=other_values(entry.inputs))
                self._run(recorder, entry, plan, number)
        recording.asked.decided |= recording.asked.sizes and not structural
        return recording, recorders

    def _run(
        self,
        recorder: Recorder,
        entry: Entry,
        plan: _Plan,
        number: int,
    ) -> None:
        with own_containers(split_inputs(entry.inputs)) as (args, kwargs):
            self._run_on(recorder, entry, plan.prefix(number), args, kwargs, tells=plan.tells)

    def _run_on(
        self,
        recorder: Recorder,
        entry: Entry,
        prefix: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        tells: bool,
    ) -> None:
        name, called = type(self.model).__name__, method(self.model, entry.entry)
        recorder.recording.takes_numbers |= takes_numbers(self.model, entry)
        tensors: dict[int, Tensor] = {}
        for path, leaf in pytree.tree_leaves_with_path((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in tensors:
                tensors[id(leaf)] = leaf
                forget(leaf)
                recorder.values.track_input(
                    leaf, f"{prefix}input {pytree.keystr(path[1:])}".strip()
                )
        recorder.recording.unopened = tuple(unopened((args, kwargs)))
        args, kwargs = closed((args, kwargs))
        result: Any = None
        content = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
        try:
            hears = sizes_heard(
                recorder.recording.asked,
                recorder.knows,
                tell=tells,
                given=max((tuple(t.shape) for t in tensors.values()), key=len, default=()),
                places=places(entry),
            )
            looks = values_guarded(_look(recorder))
            exchanges = exchanges_heard(recorder.values.note_exchange)
            backs = hand_backs_heard(recorder.values.note_handed_back)
            with recorder, module_calls(recorder), looks, exchanges, backs, hears:
                try:
                    result = result_of(called, args, kwargs, mode=entry.mode)
                except Exception as error:
                    if recorder.constants.has_lent:
                        raise NeedsMemory from error
                    raise not_taken(name, error, entry.inputs, called) from error
            if recorder.constants.has_lent:
                raise NeedsMemory
            if recorder.ledger.is_void:
                raise NeedsValues
            recorder.recording.roots.append(recorder.ledger.call)
            note_outputs(recorder, result, list(tensors.values()), prefix)
            note_handed_out(recorder, result, self.members)
            own = list(tensors.values())
            suspects = {id(t) for t in escaped(recorder, [*own, *tensors_in(result)])}
            if suspects:
                forget(result)
                result = besides_tensors(result)
                note_escaped(recorder, own, suspects, prefix)
        finally:
            if recorder.values.saved:
                recorder.values.undo_writes(is_left=partial(self._is_left, recorder))
            for tensor, before in content:
                if _is_written(tensor, before):
                    _write_back(tensor, before)
            forget((list(tensors.values()), entry.inputs, args, kwargs, result))


def _write_back(tensor: Tensor, before: Tensor) -> None:
    """Each place in memory once: an expanded tensor takes no copy_."""
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
    tensor[once].copy_(before[once])


def _is_written(tensor: Tensor, before: Tensor) -> bool:
    """Whether an input holds something else now.

    Writing back what is there anyway would not do: autograd counts writes, and a tensor that was
    expanded, or made in inference mode, takes none.
    """
    return not is_equal(tensor, before)


def _look(recorder: Recorder) -> Callable[[Tensor], None]:
    """What to do when the program takes values out of a tensor."""

    def look(tensor: Tensor) -> None:
        if recorder.values.handle_of(tensor) is None:
            recorder.constants.guard_memory(tensor)
            recorder.constants.note_handed_out(tensor)
            recorder.recording.is_told_constants = True
            return
        if recorder.ledger.is_structural:
            raise recorder.ledger.void()
        recorder.values.note_look(tensor)

    return look
