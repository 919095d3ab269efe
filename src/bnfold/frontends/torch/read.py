"""Read a module: run it on the example inputs and write down what it does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from bnfold.errors import ExampleInputError, TrainingModeError, UnsupportedModelError
from bnfold.frontends.torch.failed_run import error_to_raise, fresh
from bnfold.frontends.torch.garbage import old_objects_set_aside
from bnfold.frontends.torch.leaf_modules import is_leaf, is_observed
from bnfold.frontends.torch.record import (
    Recorder,
    address_of,
    escaped,
    forget,
    module_calls,
)
from bnfold.frontends.torch.recording import Recording, Value
from bnfold.frontends.torch.settings import Given
from bnfold.frontends.torch.shadow import NeedsMemory, Shadow, shadow_of, translate_back
from bnfold.frontends.torch.sizes_asked import sizes_heard
from bnfold.frontends.torch.state import mark_varying, may_vary, other_values, snapshot
from bnfold.frontends.torch.structure_run import NeedsValues, values_guarded

_COMPILED = "torch._dynamo.eval_frame"
_ONE_AT_A_TIME = threading.RLock()


def read_module(
    model: nn.Module,
    runs: Sequence[Any],
    *,
    like: Recording | None = None,
    given: int | None = None,
) -> Recording:
    """Run `model` once per example input and record it. The model is left as it was.

    `like` is another reading of the same module, whose way of running is good enough: without
    values if that was, and once, as what is state is known. `given` says how many of the runs are
    the user's own, if not all are.

    Raises TrainingModeError, UnsupportedModelError, or ExampleInputError if the model raises.
    """
    _check(model)
    modules = list(model.modules())
    names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
    # The run patches nn.Module and Tensor: one thread at a time.
    rng = torch.random.fork_rng(devices=[])
    with _ONE_AT_A_TIME, old_objects_set_aside(), torch.no_grad(), rng:
        # A hook is the user's code and must see real values.
        plan = _Plan(runs, len(runs) if given is None else given, again=like is None)
        if not any(is_observed(module) for module in modules) and (
            like is None or like.is_structural
        ):
            try:
                return _read(model, modules, names, plan, structural=True)
            except NeedsValues:
                pass
            except Exception as error:
                if like is not None:  # these sizes are not taken
                    raise ExampleInputError(type(model).__name__, error) from error
        # Whatever went wrong without values: only a real run can say what the model does.
        try:
            return _read(model, modules, names, plan, structural=False)
        except ExampleInputError as error:
            if like is not None:
                raise
            raise error_to_raise(
                error, model, [partial(_call, run=run) for run in runs]
            ) from error.cause


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be run."""

    runs: Sequence[Any]
    given: int
    """How many of them are the user's."""
    again: bool
    """Whether to run them again, to see what is other then."""

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
    for own_memory in (False, True):
        shadow = shadow_of(model, modules, own_memory=own_memory)
        named = {id(part): names.get(id(shadow.original(part)), "") for part in shadow.modules}
        given = Given([*modules, *shadow.modules], address_of)
        reader = _Reader(shadow, {**names, **named}, given)
        try:
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


def _own_tensors(modules: Sequence[nn.Module]) -> dict[int, Tensor]:
    """Parameters and buffers by id(), without those that live in TorchScript."""
    scripted = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
    tensors = {
        id(tensor): tensor
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }
    for module in scripted:
        for tensor in (*module.parameters(), *module.buffers()):
            tensors.pop(id(tensor), None)
    return tensors


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that enters by another method than forward."""

    entry: str
    """Its dotted name: `forward_features`, `encoder.forward`."""
    inputs: Any


def method(model: nn.Module, entry: str) -> Callable[..., Any]:
    """The method of this dotted name; the model itself for ''."""
    attribute: Any = model
    for part in entry.split(".") if entry else ():
        attribute = getattr(attribute, part)
    called: Callable[..., Any] = attribute
    return called


def split_inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as the user gives them.

    A tensor, a tuple or list of positional arguments, a dict of keywords, or the pair of both:
    `((x, y), {"mask": m})`.
    """
    if isinstance(inputs, tuple) and list(map(type, inputs)) == [tuple, dict]:
        args, keywords = inputs
        return args, dict(keywords)
    if isinstance(inputs, dict):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _call(model: nn.Module, run: Any) -> None:
    entry, given = (run.entry, run.inputs) if isinstance(run, Entry) else ("", run)
    args, kwargs = split_inputs(fresh(given))
    method(model, entry)(*args, **kwargs)


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
    if isinstance(model, torch.fx.GraphModule) and "eval" in model.__dict__:
        raise UnsupportedModelError(
            "the module was made of an exported program, whose ops are no modules",
            "fold the program itself, then call module() on the result",
        )
    if model.training:
        raise TrainingModeError(type(model).__name__)


@contextmanager
def _state_restored(members: Sequence[nn.Module]) -> Iterator[None]:
    """Whatever the run changes in the modules is put back: attributes, buffers, statistics."""
    modules = [m for m in members if not isinstance(m, torch.jit.ScriptModule)]
    # The attributes first: they hold the tables.
    before = [
        (now, dict(now))
        for module in modules
        for own in (module.__dict__,)
        for now in (own, *(own[name] for name in _TABLES))
    ]
    # A submodule left in training mode updates its statistics when it runs.
    statistics = [
        (buffer, buffer.detach().clone())
        for module in modules
        if module.training and isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for now, content in before:
            _restore(now, content)
        for buffer, values in statistics:
            buffer.copy_(values)


def _contents(modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers, with what they hold."""
    return [(tensor, tensor.detach().clone()) for tensor in _own_tensors(modules).values()]


_TABLES = ("_parameters", "_buffers", "_modules")


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    same = len(now) == len(before) and all(map(is_, now.values(), before.values()))
    if not same or list(now) != list(before):
        now.clear()
        now.update(before)


@contextmanager
def _biases_lent(modules: Sequence[nn.Module], recording: Recording) -> Iterator[None]:
    """A subclass with a forward of its own may or may not pass on a bias: lend it one and look.

    The bias is 0 for the time of the run, so nothing is computed differently.
    """
    lent = []
    for module in modules:
        if not isinstance(module, _ConvNd | nn.Linear) or is_leaf(module):
            continue
        weight = module._parameters.get("weight")
        if weight is None or module._parameters.get("bias", weight) is not None:
            continue
        channels = weight.shape[0]
        if isinstance(module, _ConvTransposeNd):
            channels = weight.shape[1] * module.groups
        bias = nn.Parameter(weight.new_zeros(channels), requires_grad=False)
        module._parameters["bias"] = bias
        recording.lent_biases[id(bias)] = module
        lent.append((module, bias))  # the reference keeps the id in use
    try:
        yield
    finally:
        for module, _ in lent:
            module._parameters["bias"] = None


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

    def read(self, plan: _Plan, *, structural: bool) -> Recording:
        """Record all runs."""
        with nullcontext() if self.shadow.is_copy else _state_restored(self.modules):
            return self._read(plan, structural=structural)

    def _read(self, plan: _Plan, *, structural: bool) -> Recording:
        before, random_states = snapshot(self.modules), _random_states()
        # What is run itself holds the very tensors that are compared: keep what was in them.
        kept = [] if self.shadow.is_copy or not plan.again else _contents(self.modules)
        recording, recorders = self._record(plan, structural=structural)
        recording.is_structural = structural
        if recording.by_chance or random_states != _random_states():
            # A path or a number that was drawn: no number of runs tells what it can be.
            recording.varying.update(event.number for event in recording.events)
            return recording
        if not plan.again:
            return recording
        is_copy = self.shadow.is_copy
        if is_copy and not may_vary(recording, recorders, self.shadow, before):
            return recording
        changed = self.shadow.changed()
        changed += [tensor for tensor, content in kept if _is_written(tensor, content)]
        changed += [self.shadow.original(t) for r in recorders for t, _ in r.saved]
        moved = any(recorder.strange for recorder in recorders)
        second, _ = self._record(plan, structural=structural, other=moved)
        ids = {id(tensor) for tensor in changed}
        mark_varying(recording, second, ids, self.shadow, moved=moved)
        return recording

    def _record(
        self, plan: _Plan, *, structural: bool, other: bool = False
    ) -> tuple[Recording, list[Recorder]]:
        recording = Recording(
            owned=_own_tensors(self.modules), members=frozenset(map(id, self.modules))
        )
        recorders = []
        with _biases_lent(self.modules, recording):
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
                entry = run.entry if isinstance(run, Entry) else ""
                given = run.inputs if isinstance(run, Entry) else run
                given = other_values(given) if other else given
                self._run(recorder, entry, *split_inputs(given), plan.prefix(number))
        return recording, recorders

    def _run(
        self,
        recorder: Recorder,
        entry: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prefix: str,
    ) -> None:
        tensors: dict[int, Tensor] = {}
        for path, leaf in pytree.tree_leaves_with_path((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in tensors:
                tensors[id(leaf)] = leaf
                forget(leaf)
                recorder.track_input(leaf, f"{prefix}input {pytree.keystr(path[1:])}".strip())
        if any(not tensor.numel() for tensor in tensors.values()):
            empty = ValueError("an example input has no elements")
            raise ExampleInputError(type(self.model).__name__, empty)
        result: Any = None
        content = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
        try:
            hears = sizes_heard(
                recorder.recording.asked,
                recorder.knows,
                tell=recorder.is_structural,
            )
            with recorder, module_calls(recorder), values_guarded(_look(recorder)), hears:
                try:
                    result = method(self.model, entry)(*args, **kwargs)
                except Exception as error:
                    if recorder.has_lent:
                        raise NeedsMemory from error
                    raise ExampleInputError(type(self.model).__name__, error) from error
            if recorder.has_lent:
                raise NeedsMemory
            if recorder.is_void:
                raise NeedsValues
            recorder.recording.roots.append(recorder.call)
            _note_outputs(recorder, result, list(tensors.values()), prefix)
            inputs = list(tensors.values())
            suspects = {id(t) for t in escaped(recorder, [*inputs, *_tensors(result)])}
            if suspects:
                forget(result)
                result = _besides_tensors(result)
                self._note_escaped(recorder, inputs, suspects, prefix)
        finally:
            if recorder.saved:
                recorder.undo_writes()
            for tensor, before in content:
                if _is_written(tensor, before):
                    tensor.copy_(before)
            forget((args, kwargs, result))

    def _note_escaped(
        self, recorder: Recorder, inputs: Sequence[Tensor], suspects: set[int], prefix: str
    ) -> None:
        """Whatever lives on without the tensors that are returned may be read by somebody.

        What only they hold is what they are views of: of that the user sees no more than they show.
        What has no handle is an input of an earlier run.
        """
        tensors = [
            tensor
            for tensor in escaped(recorder, inputs)
            if id(tensor) in suspects and recorder.handle_of(tensor) is not None
        ]
        if tensors and recorder.is_structural:
            raise recorder.void()
        for tensor in tensors:
            value = recorder.read(tensor)
            if isinstance(value, Value):
                name = f"{prefix}a tensor that outlives the run"
                recorder.recording.outputs.append((value, name))
                recorder.recording.persistent.add(value.storage)
            forget(tensor)


def _is_written(tensor: Tensor, before: Tensor) -> bool:
    """Whether an input holds something else now.

    Writing back what is there anyway would not do: autograd counts writes, and a tensor that was
    expanded, or made in inference mode, takes none.
    """
    return tensor.layout is not torch.strided or not torch.equal(tensor, before)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _besides_tensors(tree: Any) -> list[Any]:
    """What else is returned: objects that may hold tensors, and tensors' own attributes."""
    return [
        list(vars(leaf).values()) if isinstance(leaf, Tensor) else leaf
        for leaf in pytree.tree_leaves(tree)
    ]


def _look(recorder: Recorder) -> Callable[[Tensor], None]:
    """What to do when the program takes values out of a tensor."""

    def look(tensor: Tensor) -> None:
        if recorder.handle_of(tensor) is None:
            recorder.guard_memory(tensor)
            recorder.note_handed_out(tensor)
            return
        if recorder.is_structural:
            raise recorder.void()
        recorder.note_look(tensor)

    return look


def _note_outputs(recorder: Recorder, result: Any, inputs: list[Tensor], prefix: str) -> None:
    """What is returned is read by the user, and so is memory that outlives the run."""
    recording = recorder.recording
    for path, leaf in pytree.tree_leaves_with_path(result):
        if not isinstance(leaf, Tensor):
            continue
        value = recorder.read(leaf)
        if isinstance(value, Value):
            name = f"{prefix}output {pytree.keystr(path)}".strip()
            recording.outputs.append((value, name))
            recording.persistent.add(value.storage)
        else:
            recorder.note_handed_out(leaf)
    kept = [tensor for tensor, storage in recorder.tainted.values()]
    for tensor in (*inputs, *kept):
        value = recorder.read(tensor)
        if isinstance(value, Value) and value.storage in recording.persistent:
            recording.outputs.append((value, f"{prefix}memory that outlives the run"))
