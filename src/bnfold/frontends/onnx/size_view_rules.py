"""The lengths of the axes of operators that move values: see `size_axes`."""

from __future__ import annotations

from collections.abc import Callable

from bnfold.frontends.onnx.size_known import Known, Sizes
from bnfold.frontends.onnx.size_values import is_open
from bnfold.frontends.onnx.sizes import Size, product, quotient, unknown_length


def _transpose(known: Known) -> Sizes:
    order = known.node.integers("perm") or tuple(reversed(range(len(known.source))))
    return tuple(known.source[axis] for axis in order)


def _reshape(known: Known) -> Sizes:
    """A number of the target, an old length for 0, what is left for -1."""
    made: list[Size | None] = []
    for place in range(len(known.output[0])):
        number, size = known.length(1, place)
        if not size.is_fixed:
            made.append(size if size.is_length else unknown_length())
        elif number == -1:
            made.append(None)
        elif number == 0 and not known.node.integer("allowzero"):
            made.append(known.source[place])
        else:
            made.append(Size(number))
    if None in made:
        rest = quotient(product(known.source), product(size for size in made if size is not None))
        made[made.index(None)] = rest or unknown_length()
    return tuple(size for size in made if size is not None)


def _flatten(known: Known) -> Sizes:
    axis = known.node.integer("axis", 1)
    axis += len(known.source) if axis < 0 else 0
    return product(known.source[:axis]), product(known.source[axis:])


def _axes(known: Known) -> tuple[int, ...]:
    listed = known.fixed_list(1) if known.given(1) else known.node.integers("axes")
    if listed is None:
        raise ValueError("axes that depend on the size")
    return listed


def _squeeze(known: Known) -> Sizes:
    axes = {axis % len(known.source) for axis in _axes(known)}
    if not axes:
        return tuple(size for size in known.source if size != Size(1))
    return tuple(size for axis, size in enumerate(known.source) if axis not in axes)


def _unsqueeze(known: Known) -> Sizes:
    rank = len(known.output[0])
    new, old = {axis % rank for axis in _axes(known)}, iter(known.source)
    return tuple(Size(1) if axis in new else next(old) for axis in range(rank))


def _expand(known: Known) -> Sizes:
    rank = len(known.output[0])
    old = (Size(1),) * (rank - len(known.source)) + known.source
    array = known.array(1)
    if array is None:
        raise ValueError("a target that is not known")
    ahead = rank - array.size
    made = []
    for axis, size in enumerate(old):
        if axis < ahead or (size.is_fixed and size.factor > 1):
            made.append(size)
            continue
        number, target = known.length(1, axis - ahead)
        if target == size or (target.is_fixed and (number > 1 or size.is_fixed)):
            made.append(target)
        elif target == Size(1):
            made.append(size)
        else:
            made.append(target if size.is_fixed and target.is_length else unknown_length())
    return tuple(made)


def _tile(known: Known) -> Sizes:
    made = []
    for axis, size in enumerate(known.source):
        repeats = known.length(1, axis)[1]
        made.append(product((size, repeats)) if repeats.is_length else unknown_length())
    return tuple(made)


def _slice(known: Known) -> Sizes:
    """What is not cut stays; the first or last element alone is 1."""
    if known.opset < 10:
        starts, ends = known.node.integers("starts"), known.node.integers("ends")
        axes: tuple[int, ...] | None = known.node.integers("axes")
        bounds = [((start, True), (end, True)) for start, end in zip(starts, ends, strict=True)]
        steps: tuple[int, ...] | None = ()
    else:
        array = known.array(1)
        axes = known.fixed_list(3) if known.given(3) else ()
        steps = known.fixed_list(4) if known.given(4) else ()
        bounds = [
            (_bound(known, 1, place), _bound(known, 2, place))
            for place in range(0 if array is None else array.size)
        ]
    if axes is None or steps is None:
        raise ValueError("axes or steps that depend on the size")
    made = list(known.source)
    for place, ((start, starts_fixed), (end, ends_fixed)) in enumerate(bounds):
        axis = (axes[place] if axes else place) % len(made)
        step = steps[place] if steps else 1
        if not (starts_fixed and ends_fixed):
            made[axis] = unknown_length()
        elif made[axis].is_fixed:
            made[axis] = Size(known.output[0][axis])
        elif (step == 1 and (start, end) == (0, 1)) or (start == -1 and end >= _BEHIND):
            made[axis] = Size(1)
        elif step != 1 or start != 0 or end < _BEHIND:
            made[axis] = unknown_length()
    return tuple(made)


_BEHIND = (1 << 31) - 1
"""The end of a slice that goes to the end, whatever the length."""


def _bound(known: Known, position: int, place: int) -> tuple[int, bool]:
    number, size = known.length(position, place)
    return number, size.is_fixed


def _split(known: Known) -> Sizes:
    axis = known.node.integer("axis") % len(known.source)
    sizes_fixed = not known.given(1) or known.fixed_list(1) is not None
    is_fixed = known.source[axis].is_fixed and sizes_fixed
    part = Size(known.output[0][axis]) if is_fixed else unknown_length()
    return (*known.source[:axis], part, *known.source[axis + 1 :])


def _gather(known: Known) -> Sizes:
    axis = known.node.integer("axis") % len(known.source)
    indices = known.sizes(1)
    return (*known.source[:axis], *indices, *known.source[axis + 1 :])


def _concat(known: Known) -> Sizes:
    axis = known.node.integer("axis", 1) % len(known.output[0])
    parts = [sizes[axis] for sizes in known.inputs if sizes is not None]
    is_fixed = len(parts) == len(known.node.inputs) and all(size.is_fixed for size in parts)
    made = []
    for place in range(len(known.output[0])):
        met = [sizes[place] for sizes in known.inputs if sizes is not None]
        numbers = [size for size in met if size.is_fixed]  # all are the same, or it does not run
        made.append(numbers[0] if numbers else met[0])
    made[axis] = Size(sum(size.factor for size in parts)) if is_fixed else unknown_length()
    return tuple(made)


def _pad(known: Known) -> Sizes:
    pads = padding(known)
    return tuple(
        size
        if amount == (0, 0)
        else Size(known.output[0][axis])
        if amount is not None and size.is_fixed
        else unknown_length()
        for axis, (size, amount) in enumerate(zip(known.source, pads, strict=True))
    )


def padding(known: Known) -> list[tuple[int, int] | None]:
    """Before and behind, per axis; None where it may depend on the size."""
    rank = len(known.source)
    pads: list[tuple[int, int] | None] = [(0, 0)] * rank
    if known.opset < 11:
        listed = known.node.integers("pads")
        return list(zip(listed[:rank], listed[rank:], strict=True))
    axes = known.fixed_list(3) if known.given(3) else tuple(range(rank))
    if axes is None:
        return [None] * rank
    for place, axis in enumerate(axes):
        (before, size), (after, other) = (known.length(1, place + n) for n in (0, len(axes)))
        pads[axis % rank] = (before, after) if size.is_fixed and other.is_fixed else None
    return pads


def _resize(known: Known) -> Sizes:
    """From sizes, or from scales: an axis with scale 1 keeps its length."""
    upsamples = known.node.op == "Upsample" or known.opset < 11
    position = 1 if upsamples else 2
    axes = [axis % len(known.source) for axis in known.node.integers("axes")]
    axes = axes or list(range(len(known.source)))
    made = list(known.source)
    scales = known.array(position)
    has_scales = scales is not None and scales.size > 0
    for place, axis in enumerate(axes):
        size = made[axis]
        if has_scales:
            assert scales is not None
            is_fixed = not is_open(known.elements[position])
            if not is_fixed or not (size.is_fixed or scales.reshape(-1)[place] == 1.0):
                made[axis] = unknown_length()
            elif size.is_fixed:
                made[axis] = Size(known.output[0][axis])
        elif known.given(3) and known.node.text("keep_aspect_ratio_policy", "stretch") == "stretch":
            wanted = known.length(3, place)[1]
            made[axis] = wanted if wanted.is_length else unknown_length()
        elif known.node.op == "Upsample" and known.opset < 9:
            fixed = size.is_fixed or known.node.attribute("scales")[place] == 1.0
            made[axis] = (
                (Size(known.output[0][axis]) if size.is_fixed else size)
                if fixed
                else unknown_length()
            )
        else:
            made[axis] = unknown_length()
    return tuple(made)


RULES: dict[str, Callable[[Known], Sizes]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
