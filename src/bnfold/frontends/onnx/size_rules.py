"""The lengths of the axes of arithmetic, windows and reductions: see `size_axes`."""

from __future__ import annotations

from collections.abc import Callable

from bnfold.frontends.onnx.einsum import terms_of
from bnfold.frontends.onnx.size_known import Known, Sizes, is_same
from bnfold.frontends.onnx.size_values import is_open
from bnfold.frontends.onnx.sizes import Size, unknown_length


def other(known: Known) -> Sizes:
    """An operator without a rule."""
    depends = any(is_open(operand) for operand in known.elements)
    seems = _seems_fixed(known)
    return tuple(
        Size(known.output[0][axis])
        if not depends and is_same(known.output, axis) and not seems
        else unknown_length()
        for axis in range(len(known.output[0]))
    )


def _seems_fixed(known: Known) -> bool:
    """Whether an axis of an input is open and has one length under all choices."""
    return any(
        not size.is_fixed and is_same(shapes, axis)
        for sizes, shapes in zip(known.inputs, known.shapes, strict=True)
        if sizes is not None and shapes is not None
        for axis, size in enumerate(sizes)
    )


def _broadcast(known: Known) -> Sizes:
    """Axes are aligned at the end; 1 gives way, and a number above 1 does not."""
    if any(sizes is None for sizes in known.inputs):
        raise ValueError("an operand's shape is not known")
    rank = len(known.output[0])
    made = []
    for behind in range(rank, 0, -1):
        met = [
            sizes[-behind] for sizes in known.inputs if sizes is not None and len(sizes) >= behind
        ]
        longer = [size for size in met if size != Size(1)]
        numbers = [size for size in longer if size.is_fixed]
        if numbers:
            made.append(numbers[0])
        elif len(set(longer)) == 1:
            made.append(longer[0])
        else:
            made.append(unknown_length() if longer else Size(1))
    return tuple(made)


def _as_first(known: Known) -> Sizes:
    return known.source


def _window(known: Known) -> Sizes:
    """Samples stay; channels are the weight's; an open axis stays open."""
    shapes = known.shapes[0]
    if shapes is None:
        raise ValueError("its shape is not known")
    made = [known.source[0], Size(known.output[0][1])]
    if known.node.op not in _WITH_WEIGHT:
        made[1] = known.source[1]
    for axis in range(2, len(known.source)):
        size = known.source[axis]
        keeps = all(new[axis] == old[axis] for new, old in zip(known.output, shapes, strict=True))
        slides = all(stride == 1 for stride in known.node.integers("strides"))
        if size.is_fixed:
            size = Size(known.output[0][axis])
        elif not (keeps and slides) or is_same(shapes, axis):
            size = unknown_length()
        made.append(size)
    return tuple(made)


def _global_pool(known: Known) -> Sizes:
    return (*known.source[:2], *(Size(1) for _ in known.source[2:]))


def _reduce(known: Known) -> Sizes:
    rank = len(known.source)
    listed: tuple[int, ...] | None = known.node.integers("axes")
    if known.node.op in ("ArgMax", "ArgMin"):
        listed = (known.node.integer("axis"),)
    elif known.given(1):
        listed = known.fixed_list(1)
    if listed is None:
        raise ValueError("axes that depend on the size")
    if not listed and known.node.integer("noop_with_empty_axes"):
        return known.source
    axes = {axis % rank for axis in listed} or set(range(rank))
    if known.node.integer("keepdims", 1):
        return tuple(Size(1) if a in axes else size for a, size in enumerate(known.source))
    return tuple(size for a, size in enumerate(known.source) if a not in axes)


def _gemm(known: Known) -> Sizes:
    a, b = known.sizes(0), known.sizes(1)
    rows = a[1] if known.node.integer("transA") else a[0]
    return rows, b[0] if known.node.integer("transB") else b[1]


def _matmul(known: Known) -> Sizes:
    a, b = known.sizes(0), known.sizes(1)
    if min(len(a), len(b)) < 2:
        return other(known)
    if len(b) == 2:
        return (*a[:-1], b[-1])
    if len(a) == len(b):
        return (
            *(m if m == n else unknown_length() for m, n in zip(a[:-2], b[:-2], strict=True)),
            a[-2],
            b[-1],
        )
    return other(known)


def _einsum(known: Known) -> Sizes:
    """Lengths by their letters; where two operands have one, a 1 may give way to the other."""
    operands = [known.sizes(place) for place in range(len(known.node.inputs))]
    terms = terms_of(known.node, [len(operand) for operand in operands])
    if terms is None:
        return other(known)
    lengths: dict[str, Size] = {}
    for term, sizes in zip(terms, operands, strict=False):
        for letter, size in zip(term, sizes, strict=True):
            is_new = lengths.setdefault(letter, size) == size
            lengths[letter] = size if is_new else unknown_length()
    return tuple(lengths[letter] for letter in terms[2])


def _recurrent(known: Known) -> Sizes:
    """All steps, or the last: time and samples are those of X, the rest is the weight's."""
    time, samples = known.source[:2]
    directions, hidden = known.sizes(2)[0], known.sizes(2)[2]
    if known.node.integer("layout"):
        samples, time = time, samples
        whole = (samples, time, directions, hidden)
        return whole if len(known.output[0]) == len(whole) else (samples, directions, hidden)
    whole = (time, directions, samples, hidden)
    return whole if len(known.output[0]) == len(whole) else (directions, samples, hidden)


def _constant_of_shape(known: Known) -> Sizes:
    return tuple(known.length(0, place)[1] for place in range(len(known.output[0])))


_WITH_WEIGHT = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")

RULES: dict[str, Callable[[Known], Sizes]] = {
    **dict.fromkeys(
        (
            *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "PRelu"),
            *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor"),
            *("Mod", "BitShift", "Not", "Neg", "Abs", "Sqrt", "Floor", "Ceil", "Round", "Exp"),
        ),
        _broadcast,
    ),
    **dict.fromkeys(
        (
            *("Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid"),
            *("HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Gelu", "Mish", "Swish"),
            *("Erf", "Log", "Sign", "Sin", "Cos", "Reciprocal", "Shrink", "IsNaN", "IsInf"),
            *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LRN"),
            *("GroupNormalization", "LpNormalization", "MeanVarianceNormalization"),
            *("RMSNormalization", "Softmax", "LogSoftmax", "Hardmax", "Identity", "Dropout"),
            *("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "CumSum", "Trilu"),
            *("DynamicQuantizeLinear", "Scatter", "ScatterElements", "ScatterND"),
        ),
        _as_first,
    ),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "Conv", "ConvTranspose"), _window),
    **dict.fromkeys(("ConvInteger", "QLinearConv"), _window),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(
        (
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
            *("ArgMax", "ArgMin"),
        ),
        _reduce,
    ),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    "ConstantOfShape": _constant_of_shape,
}
