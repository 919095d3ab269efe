"""What of a run is read afterwards: what it returns, and what outlives it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.handed_out import reached
from bnfold.frontends.torch.record import Recorder
from bnfold.frontends.torch.recording import Value
from bnfold.frontends.torch.tensor_facts import forget


def note_outputs(recorder: Recorder, result: Any, inputs: list[Tensor], prefix: str) -> None:
    """What is returned is read by the user, and so is memory that outlives the run."""
    recording = recorder.recording
    for path, leaf in pytree.tree_leaves_with_path(result):
        if not isinstance(leaf, Tensor):
            continue
        value = recorder.values.read(leaf)
        if isinstance(value, Value):
            name = f"{prefix}output {pytree.keystr(path)}".strip()
            recording.outputs.append((value, name))
            recording.persistent.add(value.storage)
        else:
            recorder.constants.note_handed_out(leaf)
    kept = [tensor for tensor, storage in recorder.values.tainted.values()]
    for tensor in (*inputs, *kept):
        value = recorder.values.read(tensor)
        if isinstance(value, Value) and value.storage in recording.persistent:
            recording.outputs.append((value, f"{prefix}memory that outlives the run"))


def note_handed_out(recorder: Recorder, result: Any, members: Mapping[int, nn.Module]) -> None:
    """What else is returned may run a part of the model later: that part stays as it is.

    What goes in and out of it in the run is pinned, see `keep`; where it did not run, its weights.
    """
    modules, tensors = reached(result, members)
    parts = {id(part): part for module in modules for part in module.modules()}
    recorder.recording.handed_out |= parts
    idle = [part for key, part in parts.items() if key not in recorder.recording.calls]
    held = (tensor for part in idle for tensor in (*part.parameters(False), *part.buffers(False)))
    for tensor in (*tensors, *held):
        recorder.constants.note_handed_out(tensor)


def escaped(recorder: Recorder, known: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the run that somebody still holds, apart from those that are known.

    Attributes of the model, closures, lists that a hook fills, containers of the user's own: what
    is reachable after the run may be read.
    """
    recorder.values.tainted.clear()
    expected = {id(tensor) for tensor in known}

    def find() -> list[Tensor]:
        tensors = (reference() for reference in recorder.recording.alive)
        unique = {id(t): t for t in tensors if t is not None and id(t) not in expected}
        return list(unique.values())

    if find():
        gc.collect()  # what only a reference cycle holds is not reachable
    return find()


def note_escaped(
    recorder: Recorder, inputs: Sequence[Tensor], suspects: set[int], prefix: str
) -> None:
    """Whatever lives on without the tensors that are returned may be read by somebody.

    What only they hold is what they are views of: of that the user sees no more than they show.
    What has no handle is an input of an earlier run.
    """
    tensors = [
        tensor
        for tensor in escaped(recorder, inputs)
        if id(tensor) in suspects and recorder.values.handle_of(tensor) is not None
    ]
    if tensors and recorder.ledger.is_structural:
        raise recorder.ledger.void()
    for tensor in tensors:
        value = recorder.values.read(tensor)
        if isinstance(value, Value):
            name = f"{prefix}a tensor that outlives the run"
            recorder.recording.outputs.append((value, name))
            recorder.recording.persistent.add(value.storage)
        forget(tensor)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among nested results."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def besides_tensors(tree: Any) -> list[Any]:
    """What else is returned: objects that may hold tensors, and tensors' own attributes."""
    return [
        list(vars(leaf).values()) if isinstance(leaf, Tensor) else leaf
        for leaf in pytree.tree_leaves(tree)
    ]
