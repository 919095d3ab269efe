"""Which sizes and layouts a program's Python asks for.

The sizes that it is told are numbers that note what becomes of them (`told_numbers`). Of layouts
(`stride()`, `is_contiguous()`) it is only noted that one was asked for.

PyTorch's own code gets plain numbers: what it decides by sizes it decides inside of an op.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnfold.frontends.torch.told_numbers import ANY, OF_INPUT, Asked, Formula, Rule, told


@dataclass(slots=True)
class _Listener:
    """Notes what the program asks of tensors that depend on its input."""

    asked: Asked
    is_known: Callable[[Tensor], bool]
    tell: bool
    given: Sequence[int]
    """The shape of the input."""
    places: Mapping[int, int]
    """Which of several inputs a tensor is, by its id()."""
    thread: int = field(default_factory=threading.get_ident)
    """The patch is global; other threads go on as before."""

    def is_asked(self, tensor: Tensor) -> bool:
        """Whether the caller's caller's caller is the program's code."""
        name = sys._getframe(3).f_globals.get("__name__", "")
        own = name.startswith(_OWN) or threading.get_ident() != self.thread
        return not own and self.is_known(tensor)

    def hears_size(self, tensor: Tensor) -> bool:
        """Note that the program asked for a size, if it was the program."""
        if not self.is_asked(tensor):
            return False
        self.asked.sizes = True
        self.asked.decided |= not self.tell
        return True

    def hears_layout(self, tensor: Tensor) -> None:
        """The same of a layout."""
        self.asked.layout |= self.is_asked(tensor)

    def length(self, number: int, formula: Formula) -> Any:
        """A length as the program gets it, or a product of several."""
        return told(number, self.asked, formula) if self.tell else number

    def along(self, tensor: Tensor, axis: int) -> Formula:
        """The length of an axis; where tensors have other axes than the input, of some axis."""
        number, place = shape_of(tensor)[axis], self.places.get(id(tensor))
        is_batch = axis == 0 and number == next(iter(self.given), 0)
        if place is not None:
            known = OF_INPUT * (place + 1) + axis
        else:
            known = axis if is_batch or tensor.ndim == len(self.given) else ANY
        return lambda rule: rule(known, number)

    def measured(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What answers with lengths: one, or those of all axes, or how much there is of all."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            answer = original(tensor, *args, **kwargs)
            if not self.hears_size(tensor):
                return answer
            self.asked.know(sys._getframe(1))
            axes = (*args, *kwargs.values())
            if not isinstance(answer, int):
                lengths = enumerate(answer)
                return torch.Size([self.length(n, self.along(tensor, axis)) for axis, n in lengths])
            if axes and isinstance(axes[0], int):
                return self.length(answer, self.along(tensor, axes[0] % tensor.ndim))
            whole = [self.along(tensor, axis) for axis in range(tensor.ndim)]
            per_element = answer // max(_numel(tensor), 1)

            def formula(rule: Rule) -> int:
                lengths: list[int] = [part(rule) for part in whole]
                return per_element * math.prod(lengths)

            return self.length(answer, formula)

        return method

    def compared(self, original: Callable[[Tensor, Tensor], bool]) -> Callable[..., bool]:
        """What answers whether two tensors have one shape."""

        def method(tensor: Tensor, other: Tensor) -> bool:
            for one, two in ((tensor, other), (other, tensor)):
                if self.hears_size(one):
                    self.asked.decided = True
                    self.asked.shapes.add(tuple(shape_of(two)))
            return original(tensor, other)

        return method

    def counted(self, original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """What answers with something that knows no size, as len() does."""

        def method(tensor: Tensor) -> Any:
            if self.hears_size(tensor):
                formula = self.along(tensor, 0) if tensor.ndim else lambda rule: 1
                self.asked.leave(shape_of(tensor)[0] if tensor.ndim else 1, formula)
            return original(tensor)

        return method

    def laid_out(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What answers how a tensor lies in memory."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.hears_layout(tensor)
            return original(tensor, *args, **kwargs)

        return method


@contextmanager
def sizes_heard(
    asked: Asked,
    is_known: Callable[[Tensor], bool],
    *,
    tell: bool,
    given: Sequence[int],
    places: Mapping[int, int],
) -> Iterator[None]:
    """While this is open, it is noted which sizes the program asks for.

    Args:
        asked: Where it is noted.
        is_known: Whether a tensor depends on the input.
        tell: Whether the program gets numbers that note what becomes of them.
        given: The shape of the input.
        places: Which of several inputs a tensor is, by its id().
    """
    listener = _Listener(asked, is_known, tell, given, places)
    numel = listener.measured(_numel)
    with (
        patched(
            {
                "shape": property(listener.measured(shape_of)),
                "size": listener.measured(_size),
                "numel": numel,
                "is_same_size": listener.compared(torch.Tensor.is_same_size),
                "nelement": numel,
                "nbytes": property(listener.measured(_nbytes)),
                "__len__": listener.counted(torch.Tensor.__len__),
                "__iter__": listener.counted(torch.Tensor.__iter__),
                "stride": listener.laid_out(torch.Tensor.stride),
                "is_contiguous": listener.laid_out(torch.Tensor.is_contiguous),
            }
        ),
        patched({"numel": listener.measured(_numel)}, torch),
    ):
        asked.is_over = False
        try:
            yield
        finally:
            asked.is_over = True


@contextmanager
def patched(patches: dict[str, Any], owner: Any = torch.Tensor) -> Iterator[None]:
    """While this is open, tensors, or another owner, have these attributes."""
    own = {name: vars(owner).get(name) for name in patches}
    for name, patch in patches.items():
        setattr(owner, name, patch)
    try:
        yield
    finally:
        for name, original in own.items():
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


_OWN = ("torch.", "bnfold.")
shape_of = torch._C.TensorBase.shape.__get__  # type: ignore[attr-defined]
"""A tensor's shape, as it is while somebody listens, in a tenth of the time."""
strides_of = torch._C.TensorBase.stride
"""The same of its strides."""
_size = torch._C.TensorBase.size
_numel = torch._C.TensorBase.numel
_nbytes = torch._C.TensorBase.nbytes.__get__  # type: ignore[attr-defined]
