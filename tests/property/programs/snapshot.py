"""What a module is, bit for bit: to be compared before and after."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Snapshot = dict[str, Any]
_SHARED_BY_ALL = (
    torch,
    torch.Tensor,
    torch.nn.functional,
    torch.nn.modules.module,
    nn.Module,
    nn.BatchNorm2d,
    nn.Conv2d,
    threading.Thread,
    np.random,
    random,
)
"""What a fold could leave patched."""


def snapshot(model: nn.Module) -> Snapshot:
    """Every tensor, attribute, hook and flag by its path; and the random state."""
    seen: set[int] = set()
    found = dict(_walk("model", model, seen))
    for place in _SHARED_BY_ALL:
        for name, value in vars(place).items():
            if not name.startswith("_abc_"):
                found[f"{place.__name__}.{name}"] = id(value)
    found["modes of torch"] = _modes()
    found["random state of torch"] = _digest(torch.get_rng_state().numpy())
    found["random state of Python"] = random.getstate()
    found["random state of NumPy"] = _digest(np.random.get_state()[1])
    return found


def _modes() -> tuple[Any, ...]:
    modes = torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()
    return *modes, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def difference(before: Snapshot, after: Snapshot) -> str | None:
    """The first path where they part."""
    for path in [*before, *(path for path in after if path not in before)]:
        old, new = before.get(path, "nothing"), after.get(path, "nothing")
        if old != new:
            return f"{path} was {old!r:.80}, is {new!r:.80}"
    return None


def _walk(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        yield path, repr(value)
        return
    if id(value) in seen:
        yield path, ("the same as", id(value))
        return
    seen.add(id(value))
    yield path, (type(value).__name__, id(value))
    if isinstance(value, Tensor):
        yield f"{path}.content", _tensor(value)
    elif isinstance(value, np.ndarray):
        yield f"{path}.content", _digest(value)
    elif isinstance(value, torch.Generator):
        yield f"{path}.state", _digest(value.get_state().numpy())
    elif isinstance(value, random.Random):
        yield f"{path}.state", value.getstate()
    elif isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
        own = dict(value.__dict__)
        children = own.pop("_modules", {})
        yield f"{path}.children", list(children)
        for name, part in [*sorted(own.items()), *children.items()]:
            yield from _walk(f"{path}.{name}", part, seen)
    elif isinstance(value, Mapping):
        yield f"{path}.keys", [_key(key) for key in value]
        for key, part in value.items():
            yield from _walk(f"{path}[{_key(key)}]", part, seen)
    elif isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        yield f"{path}.length", len(value)
        for number, part in enumerate(value):
            yield from _walk(f"{path}[{number}]", part, seen)
    elif type(value).__module__.startswith("tests."):
        for name, part in sorted(getattr(value, "__dict__", {}).items()):
            yield from _walk(f"{path}.{name}", part, seen)


def _key(key: Any) -> str:
    return str(key) if isinstance(key, str | int | tuple) else type(key).__name__


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    plain = tensor.detach()
    content = _digest(plain.cpu().contiguous().numpy())
    where = tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    return *where, tensor.requires_grad, tensor.grad is None, content


def _digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
