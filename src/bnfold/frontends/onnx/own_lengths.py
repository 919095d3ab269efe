"""Lengths for axes of which nobody knows anything before the network runs.

How many boxes are left, how large a cut-out is, what an operator of another domain makes: the data
decides, or no inference says. Such an axis gets two numbers of its own, as an open dimension of an
input does, and a symbol that nothing else has (see `sizes`): what is built on the numbers is used
only if it holds for every length. What a linear op reads has the rank and the channels that the
weight asks for, as it runs on nothing else.

    NonMaxSuppression      (?, 3)              (~, 3)
    custom op -> Conv      ?                   (~, C, ~, ~), C from the weight

Nothing is followed through a node

- that makes a value with such an axis,
- whose output was known before, although not all that it reads was: numbers that were made up for
  that may contradict it. What the weight alone tells does not: the network runs on nothing else.

What was known before stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from onnx import TypeProto, helper

from bnfold.frontends.onnx.analysis import Analysis
from bnfold.frontends.onnx.constants import Constants, find_constants
from bnfold.frontends.onnx.nodes import Network, Node
from bnfold.frontends.onnx.open_sizes import follow_sizes
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.shapes import Partly, Shape, Shapes, infer
from bnfold.frontends.onnx.sizes import Size, unknown_length

_ROUNDS = 32
"""How often lengths that were given may lead to values that need further ones."""
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LINEAR = (*_CONVOLUTIONS, "Gemm", "MatMul")
_CONTROL_FLOW = ("If", "Loop", "Scan")
"""What their bodies declare is not held to: of their outputs nothing is taken for known."""
_COUNTING = ("NonZero", "NonMaxSuppression", "Compress", "Unique")
"""The data decides one length, whatever comes to be known of what they read."""
_LIKE_INPUT = frozenset(
    (
        *("BatchNormalization", "Relu", "LeakyRelu", "Clip", "Elu", "Selu", "Celu", "Sigmoid"),
        *("HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Gelu", "Mish", "Abs"),
        *("Neg", "Exp", "Erf", "Identity", "Dropout", "InstanceNormalization"),
    )
)
"""Operators whose output has the shape and the dtype of their first input."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the reader of a value asks for."""

    shape: Partly
    data_type: int


@dataclass(slots=True)
class _Lengths:
    """Numbers that no other axis has, under each choice."""

    shapes: Shapes
    used: list[set[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.used = [{n for shape in v.values() for n in shape} for v in self.shapes.values]

    def next(self, axis: int) -> Shape:
        """Few samples, or the side of an image; far enough apart to be no multiples."""
        for number in count():
            pair = (
                (7 + 2 * number, 11 + 4 * number)
                if axis == 0
                else (256 + 64 * number, 288 + 128 * number)
            )
            if not any(length in used for length, used in zip(pair, self.used, strict=True)):
                for length, used in zip(pair, self.used, strict=True):
                    used.add(length)
                return pair
        raise AssertionError("numbers do not end")


def with_own_lengths(model: OnnxModel, analysis: Analysis) -> Analysis:
    """See the head of this file; the same analysis where no linear op or step needs that."""
    network, before = analysis.network, analysis.shapes
    if not before.values or not any(_is_in_need(node, analysis) for node in network.nodes):
        return analysis
    shapes, constants = _doubled(analysis), analysis.constants
    kinds = [_types(network, before, min(c, before.count - 1)) for c in range(shapes.count)]
    lengths = _Lengths(shapes)
    own: set[str] = set()
    made_up: set[str] = set()
    for _ in range(_ROUNDS):
        asked = _asked(network, constants, shapes)
        picked = dict(_in_front(network, constants, shapes, asked))
        new = picked.keys() - own
        if not new:
            break
        is_fixed = before.count == 1 and not own
        for name in sorted(new):
            if _give(name, picked[name], lengths, kinds, shapes, is_fixed=is_fixed):
                made_up.add(name)
        own |= new
        shapes.proven = tuple(kinds)
        constants = find_constants(network, model.tensor_data, shapes)
        infer(network, shapes, constants.value)
    if not own:
        return analysis
    doubtful = _all_behind(network, made_up)
    if before.count > 1:  # the rules say more of these now
        for name in _all_behind(network, own) - doubtful - own:
            shapes.told.pop(name, None)
    shapes.blind = frozenset(
        n.index for n in network.nodes if _is_blind(n, own, doubtful, before, shapes)
    )
    if before.count == 1:
        constants.settled = _settled(constants, before)
    follow_sizes(network, constants, shapes)
    return Analysis(network, shapes, constants)


def _is_in_need(node: Node, analysis: Analysis) -> bool:
    """Whether it could be edited, or go, if the shape of what it reads were known."""
    source = node.input(0)
    if node.op not in (*_LINEAR, "BatchNormalization") or analysis.constants.is_constant(source):
        return False
    return analysis.shapes.of(source) is None


def _doubled(analysis: Analysis) -> Shapes:
    """The same under two choices, with all that is known told."""
    before = analysis.shapes
    last = before.count - 1
    made = Shapes(2, [before.choices[0], before.choices[last]])
    made.dtypes, made.for_given_only = dict(before.dtypes), before.for_given_only
    made.has_guesses = before.has_guesses
    made.values = [before.values[0], before.values[last]]
    made.partly = [before.partly[0], before.partly[last]]
    for name, shape in before.values[0].items():
        if before.count == 1:
            made.told[name] = tuple(Size(length) for length in shape)
        elif name in before.lengths:
            made.told[name] = before.lengths[name]
    return made


def _types(network: Network, shapes: Shapes, choice: int) -> dict[str, TypeProto]:
    """What is known of the values that nodes make, for inference to keep."""
    return {
        name: helper.make_tensor_type_proto(shapes.dtypes[name], shape)
        for name, shape in shapes.values[choice].items()
        if name in network.makers and shapes.dtypes.get(name)
    }


def _asked(network: Network, constants: Constants, shapes: Shapes) -> dict[str, _Asked]:
    """What linear ops ask of values whose shape is not known, and of what these are made of."""
    asked: dict[str, _Asked] = {}
    for node in reversed(network.nodes):
        source = node.input(0)
        if not source or source in asked or shapes.of(source) is not None:
            continue
        if node.op in _LIKE_INPUT and node.outputs[0] in asked:
            asked[source] = asked[node.outputs[0]]
        elif (own := _asked_by(node, constants, shapes)) is not None:
            asked[source] = own
        elif (channels := _normed(node, constants, shapes)) is not None:
            asked[source] = channels
    return asked


def _asked_by(node: Node, constants: Constants, shapes: Shapes) -> _Asked | None:
    name = node.input(1)
    weight = constants.shape(name) if name and node.op in (*_CONVOLUTIONS, "Gemm") else None
    data_type = shapes.dtypes.get(name, 0)
    if weight is None or not data_type or 0 in weight or constants.is_constant(node.input(0)):
        return None
    if node.op == "Gemm":
        if len(weight) != 2:
            return None
        channels = weight[1] if node.integer("transB") else weight[0]
        return _Asked((channels, None) if node.integer("transA") else (None, channels), data_type)
    if len(weight) < 3:
        return None
    is_transposed = node.op == "ConvTranspose"
    channels = weight[0] if is_transposed else weight[1] * node.integer("group", 1)
    return _Asked((None, channels, *(None for _ in weight[2:])), data_type)


def _normed(node: Node, constants: Constants, shapes: Shapes) -> _Asked | None:
    """What a BatchNormalization asks, where the rank is known."""
    if node.op != "BatchNormalization":
        return None
    scale, data_type = constants.shape(node.input(1)), shapes.dtypes.get(node.input(0), 0)
    ranks = {len(known.get(node.input(0), ())) for known in shapes.partly}
    rank = ranks.pop() if len(ranks) == 1 else 0
    if scale is None or len(scale) != 1 or rank < 2 or not data_type:
        return None
    return _Asked((None, scale[0], *(None for _ in range(rank - 2))), data_type)


def _in_front(
    network: Network, constants: Constants, shapes: Shapes, asked: dict[str, _Asked]
) -> Iterator[tuple[str, tuple[list[Partly], _Asked | None]]]:
    """The values that need lengths and have none in front of them that do: these say more."""
    behind: set[str] = set()
    doubted: set[str] = set()
    for name in network.inputs:
        if shapes.of(name) is None and name in asked:
            behind.add(name)
            yield name, ([], asked[name])
    for node in network.nodes:
        is_behind = any(name in behind for name in node.inputs)
        is_doubted = node.op in _CONTROL_FLOW or any(name in doubted for name in node.inputs)
        for name in node.outputs:
            if not name or shapes.of(name) is not None or constants.is_constant(name):
                behind |= {name} if is_behind else set()
                continue
            partly = [known[name] for known in shapes.partly if name in known]
            if is_doubted or len({len(shape) for shape in partly}) != 1:
                partly = []
            counts = node.op in _COUNTING and len(partly) == 2 and partly[0].count(None) == 1
            told = _fitting(partly, asked.get(name))
            if told is not None and (counts or not is_behind):
                behind.add(name)
                yield name, told
            elif is_behind:
                behind.add(name)
            elif is_doubted:
                doubted.add(name)


def _fitting(
    partly: list[Partly], asked: _Asked | None
) -> tuple[list[Partly], _Asked | None] | None:
    """What is known of a value; None if that is not even its rank."""
    if len(partly) < 2:
        return None if asked is None else ([], asked)
    if asked is None or len(asked.shape) != len(partly[0]):
        return partly, None
    return partly, asked


def _give(
    name: str,
    told: tuple[list[Partly], _Asked | None],
    lengths: _Lengths,
    kinds: Sequence[dict[str, TypeProto]],
    shapes: Shapes,
    *,
    is_fixed: bool,
) -> bool:
    """Numbers for all axes of a value; `is_fixed` says that a known one holds for every input.

    Returns whether one of them is made up.
    """
    partly, asked = told
    rank = len(partly[0]) if partly else len(asked.shape if asked else ())
    data_type = shapes.dtypes.get(name) or (asked.data_type if asked else 0)
    if not data_type:
        return False
    is_made_up = False
    sizes: list[Size | None] = []
    made: list[Shape] = []
    for axis in range(rank):
        wanted = asked.shape[axis] if asked else None
        known = [shape[axis] for shape in partly]
        if wanted is not None:
            sizes.append(Size(wanted))
            made.append((wanted, wanted))
        elif known and known[0] is not None and known[1] is not None:
            sizes.append(Size(known[0]) if is_fixed else None)
            made.append((known[0], known[1]))
        else:
            sizes.append(unknown_length())
            made.append(lengths.next(axis))
            is_made_up = True
    shapes.told[name] = tuple(sizes)
    for choice, kind in enumerate(kinds):
        kind[name] = helper.make_tensor_type_proto(data_type, [pair[choice] for pair in made])
    return is_made_up


def _all_behind(network: Network, names: set[str]) -> set[str]:
    """These values, and all that is computed of them."""
    found = set(names)
    for node in network.nodes:
        if not found.isdisjoint(node.inputs):
            found.update(name for name in node.outputs if name)
    return found


def _is_blind(
    node: Node, own: set[str], doubtful: set[str], before: Shapes, shapes: Shapes
) -> bool:
    """Whether nothing is followed through the node."""
    if any(name in own for name in node.outputs):
        return True
    is_new = any(
        before.of(name) is None and shapes.of(name) is not None
        for name in doubtful.intersection(node.inputs)
    )
    return is_new and any(before.of(name) is not None for name in node.outputs if name)


def _settled(constants: Constants, before: Shapes) -> frozenset[str]:
    """Constants that come from shapes which were known, and one for every input, before."""
    settled: set[str] = set()
    for node in constants.network.nodes:
        if not any(name in constants.open for name in node.outputs):
            continue
        if node.op in ("Shape", "Size"):
            is_settled = before.of(node.inputs[0]) is not None
        else:
            read = node.inputs[:1] if node.op == "CastLike" else node.inputs
            is_settled = all(name not in constants.open or name in settled for name in read)
        if is_settled:
            settled.update(name for name in node.outputs if name)
    return frozenset(settled)
