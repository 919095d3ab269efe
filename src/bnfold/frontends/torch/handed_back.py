"""`y.contiguous()` where y lies so already: PyTorch hands y back, and tells no dispatch mode.

In another layout it is a copy. A program that writes to it in place and reads y afterwards does
something else there, so it has to be read in other layouts as well (`read_other_sizes`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bnfold.frontends.torch.recording import Recording
from bnfold.frontends.torch.sizes_asked import patched


@contextmanager
def hand_backs_heard(note: Callable[[Tensor], object]) -> Iterator[None]:
    """While this is open, `note` is told of tensors that were asked for in a layout they had."""
    thread = threading.get_ident()  # the patch is global; other threads go on as before

    def contiguous(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = torch._C.TensorBase.contiguous(tensor, *args, **kwargs)
        if given is tensor and threading.get_ident() == thread:
            note(tensor)
        return given

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = torch._C.TensorBase.to(tensor, *args, **kwargs)
        if given is tensor and "memory_format" in kwargs and threading.get_ident() == thread:
            note(tensor)
        return given

    with patched({"contiguous": contiguous, "to": to}):
        yield


def are_written_to(recording: Recording) -> bool:
    """Whether an op that the program wrote down works in place on what was handed back."""
    return bool(recording.handed_back) and any(
        event.written is not None and event.written.storage in recording.handed_back
        for event in recording.events
    )
