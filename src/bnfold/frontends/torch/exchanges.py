"""`tensor.data = other`: PyTorch tells no dispatch mode that a tensor lies elsewhere now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bnfold.frontends.torch.sizes_asked import patched

_data: Any = torch._C.TensorBase.data  # type: ignore[attr-defined]


@contextmanager
def exchanges_heard(note: Callable[[Tensor], object]) -> Iterator[None]:
    """While this is open, `note` is told of every tensor that has got other memory."""
    thread = threading.get_ident()  # the patch is global; other threads go on as before

    def exchange(tensor: Tensor, other: Tensor) -> None:
        _data.__set__(tensor, other)
        if threading.get_ident() == thread:
            note(tensor)

    with patched({"data": property(_data.__get__, exchange)}):
        yield
