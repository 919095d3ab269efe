"""What PyTorch says that it is doing, where a module's code may ask and take another path.

A module is read while no gradients are recorded and nothing is compiled, traced or exported. Code
that names one of the questions below is read once more with the answer turned (`otherwise`): with
`if torch.is_grad_enabled(): return self.features(x)` the folded module may be run either way.

Not tried is what the machine, the environment or `torch.jit.script` decides.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch

from bnfold.frontends.torch import modules
from bnfold.frontends.torch.sizes_asked import patched

_QUESTIONS = {
    "gradients": ("is_grad_enabled", "requires_grad", "grad_fn", "is_leaf"),
    "inference": ("is_inference_mode_enabled", "is_inference"),
    "compiling": ("is_compiling", "is_dynamo_compiling"),
    "exporting": ("is_exporting",),
    "tracing": ("is_tracing", "_is_tracing"),
    "exporting to ONNX": ("is_in_onnx_export",),
    "autocast": ("is_autocast_enabled", "is_autocast_cpu_enabled"),
}


def modes_asked(names: frozenset[str]) -> list[str]:
    """The modes that code which names these may ask for."""
    return [mode for mode, questions in _QUESTIONS.items() if not names.isdisjoint(questions)]


def in_mode(mode: str) -> Any:
    """A context in which PyTorch says that it is doing this; '' is as it is."""
    if mode == "gradients":
        return _with_gradients()
    if mode == "inference":
        return torch.inference_mode()
    return _said(mode) if mode else nullcontext()


@contextmanager
def _with_gradients() -> Iterator[None]:
    """Modules of ours that write to their inputs if nobody wants gradients still do, here."""
    thread, is_enabled = threading.get_ident(), torch.is_grad_enabled

    def answer() -> bool:
        caller = sys._getframe(1).f_globals.get("__name__")
        is_own = caller == modules.__name__ and threading.get_ident() == thread
        return is_enabled() and not is_own

    with torch.enable_grad(), patched({"is_grad_enabled": answer}, torch):
        yield


@contextmanager
def _said(mode: str) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name in _ANSWERS[mode]:
            try:
                owner = import_module(module)
            except ImportError:  # of another release
                continue
            answer = getattr(owner, name, None)
            if answer is not None:
                says = True if answer is False else _yes
                stack.enter_context(patched({name: says}, owner))
        yield


def _yes(*_: Any) -> bool:
    return True


_COMPILING = (
    ("torch.compiler", "_is_compiling_flag"),
    ("torch.compiler", "is_dynamo_compiling"),
)
_ANSWERS = {
    "compiling": _COMPILING,
    "exporting": (*_COMPILING, ("torch.compiler", "_is_exporting_flag")),
    "tracing": (("torch._C", "_is_tracing"),),
    "exporting to ONNX": (
        ("torch.onnx", "is_in_onnx_export"),
        ("torch.onnx._internal.exporter._flags", "_is_onnx_exporting"),
    ),
    "autocast": (("torch", "is_autocast_enabled"), ("torch", "is_autocast_cpu_enabled")),
}
"""What gives the answers: flags, and functions."""
