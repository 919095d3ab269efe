"""Calls of modules, told to the recorder of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bnfold.frontends.torch.record import Recorder


@contextmanager
def module_calls(recorder: Recorder) -> Iterator[None]:
    """While this is open, calls of modules are told to the recorder.

    Heard in what `Module.__call__` goes through: to set `__call__` itself, Python visits every
    class of modules there is, twice per run, and a few libraries define thousands.
    """
    original: Callable[..., Any] = nn.Module._call_impl
    ledger = recorder.ledger
    thread = threading.get_ident()  # the patch is global; other threads go on as before

    def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            ledger.lose(module)
            return original(module, *args, **kwargs)
        if recorder.depth:
            return original(module, *args, **kwargs)
        outer = ledger.call
        is_leaf_call = recorder.takes_as_leaf(module, args, kwargs)
        # Read before the call begins: catching up with writes is the caller's doing.
        inputs = recorder.values_of(args[0] if is_leaf_call else (args, kwargs))
        call = ledger.enter(module)
        try:
            if is_leaf_call:
                return recorder.run_leaf(module, call, original, args[0], inputs[0])
            call.inputs = inputs
            result = original(module, *args, **kwargs)
            call.outputs = recorder.values_of(result)
            call.single = len(call.inputs) == 1 and isinstance(result, Tensor)
            return result
        finally:
            ledger.call = outer

    nn.Module._call_impl = call_module  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module._call_impl = original  # type: ignore[method-assign]
