"""What an op does besides computing: what it writes to, and what it makes of a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.recording import Const, Derivation
from bnfold.frontends.torch.tensor_facts import geometry_of, memory_of

FACTORIES = frozenset(
    {
        "new_empty",
        "new_empty_strided",
        "new_zeros",
        "new_ones",
        "new_full",
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "sym_size",
    }
)
"""Ops that look at the shape of their argument, not at its values."""

_DERIVATIONS = {
    "t": Derivation.TRANSPOSED,
    "detach": Derivation.ITSELF,
    "alias": Derivation.ITSELF,
    "sign": Derivation.SIGNS,
    "view": Derivation.RESHAPED,
    "_unsafe_view": Derivation.RESHAPED,
    "unsqueeze": Derivation.RESHAPED,
}
"""Computations on a parameter that leave it editable, and what they make of it."""


def is_factory(func: Any) -> bool:
    """Whether it looks at no values."""
    return aten_name(func) in FACTORIES


def result_of(constant: Const, func: Any, args: tuple[Any, ...], result: Any) -> Derivation:
    """What the result of an op with this one constant is of the constant's origin."""
    how = constant.how.then(_derivation_of(func, args))
    if how is not Derivation.OTHER or constant.how is Derivation.SIGNS:
        return how
    is_view = constant.how is not Derivation.OTHER and aten_name(func) in _VIEWS
    return _lies_as(result, constant.origin) if is_view else how


def _lies_as(view: Tensor, origin: Tensor) -> Derivation:
    """How a view of a parameter's memory lies there."""
    offset, shape, strides = geometry_of(view)
    first, matrix, steps = geometry_of(origin)
    if len(matrix) != 2 or len(shape) != 3 or (shape[0] > 1 and strides[0]) or offset != first:
        return Derivation.VIEWED
    if memory_of(view) is None or memory_of(view) != memory_of(origin):
        return Derivation.VIEWED
    for how, axes in ((Derivation.REPEATED, (0, 1)), (Derivation.REPEATED_TRANSPOSED, (1, 0))):
        pairs = [(shape[n + 1], strides[n + 1], matrix[a], steps[a]) for n, a in enumerate(axes)]
        if all(
            size == own and (size == 1 or step == own_step) for size, step, own, own_step in pairs
        ):
            return how
    return Derivation.VIEWED


_VIEWS = frozenset(
    {"expand", "permute", "transpose", "t", "swapaxes", "mT", "numpy_T", "squeeze", "unsqueeze"}
    | {"view", "_unsafe_view", "_reshape_alias"}
)
"""Ops whose result is their first argument's memory, all of it."""


def keeps_all(func: Any) -> bool:
    """Whether an op leaves a parameter editable, in some uses of what it makes of it."""
    name = aten_name(func)
    return name in _DERIVATIONS or name in _VIEWS


def _derivation_of(func: Any, args: tuple[Any, ...]) -> Derivation:
    """What it makes of a parameter, its first argument."""
    name = aten_name(func)
    if name in _EXCHANGES:
        is_turned = (
            isinstance(args[0], Tensor) and args[0].ndim == 2 and _EXCHANGES[name](*args[1:])
        )
        return Derivation.TRANSPOSED if is_turned else Derivation.OTHER
    return _DERIVATIONS.get(name, Derivation.OTHER)


def _exchanges(first: int, second: int) -> bool:
    return first % 2 != second % 2


_EXCHANGES: dict[str, Callable[..., bool]] = {
    "permute": lambda dims: dims[0] % 2 == 1,
    "transpose": _exchanges,
    "swapaxes": _exchanges,
    "mT": lambda: True,
    "numpy_T": lambda: True,
}
"""Ops on axes, and whether they exchange the two of a matrix."""


_STATISTICS_WRITERS = {"native_batch_norm", "batch_norm", "cudnn_batch_norm"}
"""(input, weight, bias, mean, var, training, ...): in training they update mean and var unsaid."""
_WRITES: dict[Any, tuple[int, ...] | None] = {}
"""Per op that was met, the positions of the arguments that it writes to."""


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes to."""
    if aten_name(func) in _STATISTICS_WRITERS and args[5]:
        return [tensor for tensor in args[3:5] if tensor is not None]
    positions = _WRITES.get(func)
    schema = getattr(func, "_schema", None)
    if positions is None and func not in _WRITES:
        if schema is None or not schema.is_mutable:
            _WRITES[func] = None
        else:
            positions = tuple(
                index
                for index, argument in enumerate(schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            )
            _WRITES[func] = positions
    if not positions or schema is None:
        return []
    written = []
    for index in positions:
        name = schema.arguments[index].name
        argument = args[index] if index < len(args) else kwargs.get(name)
        written += [leaf for leaf in pytree.tree_leaves(argument) if isinstance(leaf, Tensor)]
    return written
