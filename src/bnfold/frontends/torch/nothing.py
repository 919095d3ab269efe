"""What is left of a branch whose work another branch's convolution does: nothing.

A module's forward goes on to add up its branches, as that is its own Python. What was merged away
returns `NOTHING`, an object that is the zero of such sums and costs no pass over memory:

    x + NOTHING = x        NOTHING - x = -x        c * NOTHING = NOTHING        dropout: NOTHING

Anything else that is asked of it raises an error that says so. Annotations are types here, not
texts, so that `torch.jit.script` can read the module.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]


class Nothing:
    """The zero of a sum: what it is added to stays what it is."""

    _answers: ClassVar[dict[str, Callable[..., Any]]] = {}
    """Per name of a function of PyTorch, what it gives where nothing is among its arguments."""

    def __add__(self, other: Any) -> Any:
        """The other operand."""
        return other if isinstance(other, _TENSORS) else _with_number(other)

    __radd__ = __iadd__ = __add__

    def __sub__(self, other: Any) -> Any:
        """The other operand, negated."""
        return _difference(self, other)

    def __rsub__(self, other: Any) -> Any:
        """The other operand."""
        return _difference(other, self)

    __isub__ = __sub__

    def __mul__(self, other: Any) -> Any:
        """Nothing."""
        return self

    __rmul__ = __truediv__ = __mul__

    def __neg__(self) -> Any:
        """Nothing."""
        return self

    def contiguous(self, **options: Any) -> Any:
        """Nothing, however it lies in memory."""
        return self

    clone = detach = contiguous

    def __getitem__(self, place: Any) -> Any:
        """A part of a tensor, or an item of many; how large it was is not known any more."""
        raise TypeError(f"a part of it: {_MISSING}")

    def __repr__(self) -> str:
        """What it stands for."""
        return "<nothing: merged into another branch>"

    def __reduce__(self) -> str:
        """There is only one."""
        return "NOTHING"

    def __getattr__(self, name: str) -> Any:
        """Everything a tensor has, and this has not."""
        if name.startswith("__"):  # protocols that somebody looks for
            raise AttributeError(name)
        raise AttributeError(f"{name!r}: {_MISSING}")

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The functions that sums of branches are made of."""
        name = getattr(func, "__name__", "")
        answer = cls._answers.get(name)
        if answer is None:
            raise TypeError(f"{name}: {_MISSING}")
        return answer(*args, **(kwargs or {}))


NOTHING = Nothing()
_TENSORS = (Tensor, Nothing, fx.Proxy)

_MISSING = (
    "this tensor was merged into that of another branch; where the program needs it, fold with"
    " merge='never'"
)


def _sum(input: Any, other: Any, *, alpha: Any = 1) -> Any:  # noqa: A002  # as PyTorch calls it
    """The operand that is not nothing."""
    if isinstance(other, Nothing):
        return input if isinstance(input, _TENSORS) else _with_number(input)
    if not isinstance(other, _TENSORS):
        return _with_number(other)
    return other if isinstance(alpha, int) and alpha == 1 else other * alpha


def _difference(input: Any, other: Any, *, alpha: Any = 1) -> Any:  # noqa: A002
    """What is left of a difference."""
    if isinstance(other, Nothing):
        return input if isinstance(input, _TENSORS) else _with_number(input)
    if not isinstance(other, _TENSORS):
        return _with_number(other)
    negated: Any = -other if isinstance(alpha, int) and alpha == 1 else other * -alpha  # type: ignore[operator]
    return negated


def _with_number(number: Any) -> Any:
    """Nothing and 0 are nothing; nothing and another number are not known to be a tensor."""
    if number == 0:
        return NOTHING
    raise TypeError(f"a sum with {number!r}: {_MISSING}")


def _swapped(input: Any, other: Any, *, alpha: Any = 1) -> Any:  # noqa: A002
    return _difference(other, input, alpha=alpha)


def _product(input: Any, other: Any) -> Any:  # noqa: A002
    return NOTHING


def _quotient(input: Any, other: Any) -> Any:  # noqa: A002
    if not isinstance(input, Nothing):
        raise TypeError(f"a quotient: {_MISSING}")
    return NOTHING


def _swapped_quotient(input: Any, other: Any) -> Any:  # noqa: A002
    return _quotient(other, input)


def _same(input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
    return NOTHING


_FUNCTIONS: Mapping[Callable[..., Any], Sequence[str]] = {
    _sum: ("add", "add_", "iadd", "__add__", "__radd__", "__iadd__"),
    _difference: ("sub", "sub_", "isub", "subtract", "subtract_", "__sub__", "__isub__"),
    _swapped: ("rsub", "__rsub__"),
    _product: ("mul", "mul_", "imul", "multiply", "__mul__", "__rmul__", "__imul__"),
    _quotient: ("div", "div_", "truediv", "true_divide", "divide", "__truediv__", "__itruediv__"),
    _swapped_quotient: ("__rdiv__", "__rtruediv__"),
    _same: (
        *("neg", "__neg__", "clone", "detach"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
    ),
}
SUMS = frozenset((*_FUNCTIONS[_sum], *_FUNCTIONS[_difference], *_FUNCTIONS[_swapped]))
"""Names of functions that add and subtract."""
PRODUCTS = frozenset((*_FUNCTIONS[_product], *_FUNCTIONS[_quotient]))
"""Names of functions that multiply and divide."""
KEEPERS = frozenset(("neg", "__neg__", "contiguous", "clone", "detach"))
"""Names of functions that make nothing of nothing, and a tensor of its size of a tensor."""
Nothing._answers = {name: answer for answer, names in _FUNCTIONS.items() for name in names}


class MergedAway(nn.Module):
    """A branch's first module, merged into another branch's convolution: it returns nothing.

    In TorchScript and in a graph of fx, where everything is a tensor, it returns one zero.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing: a network has many of these, and most of their time is the way to forward."""
        is_plain = args and type(args[0]) is Tensor
        if is_plain and not (self._forward_hooks or self._forward_pre_hooks):
            return NOTHING
        return super().__call__(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # PyTorch's name for it
        """Nothing."""
        if not is_scripting():
            if isinstance(input, fx.Proxy):
                return input.new_zeros(())
            return NOTHING  # type: ignore[return-value]
        return torch.zeros([1] * input.dim(), dtype=input.dtype, device=input.device)
