"""Mutate files as what they are: text by its tokens, protobuf by its fields.

A byte that is flipped anywhere makes a file that is refused at the door, nearly always. A field
that is doubled, moved or renamed, or a number that is put in place of another one, gets further.
Everything is drawn from one random generator, so a seed and a file give the same result again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from bnfold.frontends.onnx.wire import WireError, fields

Mutate = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 255, 256, 1000, 65535, 10**6, 2**24),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
_WORDS = (
    b"AVE MAX SUM PROD TEST TRAIN true false inf nan -inf FLOAT16 CEIL FLOOR layer layers input"
    b" input_shape input_dim name type bottom top param include exclude phase stage not_stage"
    b" min_level max_level dim shape axis num_axes end_axis num_output kernel_size kernel_h pad"
    b" pad_w stride dilation group bias_term eps use_global_stats operation coeff slice_point"
    b" concat_dim slice_dim order global_pooling round_mode ceil_mode scale shift power offset"
    b" height width zoom_factor negative_slope channel_shared default_forward_type loss_weight"
).split()
_TYPES = (
    b"Axpy BN BatchNorm Bias Clip Concat Convolution ConvolutionDepthwise Crop Deconvolution"
    b" Dropout Eltwise Flatten InnerProduct Interp PReLU Permute Pooling Power ReLU ReLU6 Reshape"
    b" Scale ShuffleChannel Silence Slice Split Input Data DummyData MemoryData Upsample Softmax"
).split()
_LITERALS = (
    *(b"-1", b"-0", b"1e38", b"1e-45", b"1e999", b".5", b"5.", b"0x7fffffff", b"017", b"0.0f"),
    *(b"99999999999999", b"-99999999999999999999", b"{", b"}", b"<", b">", b"[", b"]", b":", b","),
    *(
        b";",
        b"#",
        b"'",
        b'"',
        b'"\\x1b[31m"',
        b'"<script>"',
        b'"\\377\\000"',
        b'"\xff"',
        b"/",
        b"-",
    ),
)
_TEXT_TOKEN = re.compile(rb"\s+|#[^\n]*|\w+|\"[^\"\n]*\"|'[^'\n]*'|[-+.\w]+|.", re.DOTALL)


def text(data: bytes, rng: random.Random) -> bytes:
    """Tokens of a prototxt replaced, removed, doubled; whole fields moved and doubled."""
    tokens = _TEXT_TOKEN.findall(data)
    if not tokens:
        return rng.choice(_WORDS)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at = rng.randrange(len(tokens))
        choice = rng.randrange(9)
        if choice == 0:
            del tokens[at : at + rng.choice((1, 1, 2, 5))]
        elif choice == 1:
            tokens[at] = rng.choice(tokens)
        elif choice == 2:
            tokens.insert(at, b" " + _new_token(rng) + b" ")
        elif choice <= 5:
            tokens[at] = _like(tokens[at], tokens, rng)
        else:
            start, end = _block(tokens, at)
            block = tokens[start:end]
            if choice != 6:
                del tokens[start:end]
            if choice != 7:
                place = rng.randrange(len(tokens) + 1)
                tokens[place:place] = [b" ", *block]
        if not tokens:
            break
    return b"".join(tokens)


def _new_token(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return b"%d" % rng.choice(NUMBERS)
    if kind == 1:
        return b'"%b"' % rng.choice(_TYPES)
    return rng.choice(_WORDS if kind == 2 else _LITERALS)


def _like(token: bytes, tokens: list[bytes], rng: random.Random) -> bytes:
    """A token of the same kind, from here or from anywhere."""
    if token[:1] in b"\"'":
        near = [one for one in tokens if one[:1] in b"\"'"]
        return rng.choice((rng.choice(near), b'"%b"' % rng.choice(_TYPES)))
    if token.isdigit():
        return b"%d" % rng.choice(NUMBERS)
    if token.isalpha():
        return rng.choice((rng.choice(_WORDS), rng.choice([o for o in tokens if o.isalpha()])))
    return token if token.isspace() else _new_token(rng)


def _block(tokens: list[bytes], at: int) -> tuple[int, int]:
    """The field in braces around or behind a token."""
    start = at
    while start > 0 and tokens[start] not in (b"{", b"<"):
        start -= 1
    depth, end = 0, start
    while end < len(tokens):
        depth += tokens[end] in (b"{", b"<")
        depth -= tokens[end] in (b"}", b">")
        end += 1
        if depth <= 0:
            break
    while start > 0 and not tokens[start].isalpha():
        start -= 1
    return start, end


# -------------------------------------------------------------------- protobuf


@dataclass(slots=True)
class _Field:
    number: int
    kind: int
    value: int | bytes | list[_Field]
    """A varint, raw bytes, or the fields of a message."""


@lru_cache(512)
def _parse(data: bytes, depth: int = 0) -> tuple[_Field, ...]:
    """The fields of a message; what reads as a message in turn counts as one. Not to be changed."""
    found = []
    for one in fields(data, 0, len(data)):
        content = data[one.content : one.end]
        if one.kind == 0:
            value = sum((byte & 0x7F) << 7 * n for n, byte in enumerate(content))
            found.append(_Field(one.number, one.kind, value))
            continue
        inner: bytes | list[_Field] = content
        if one.kind == 2 and len(content) > 1 and depth < 12 and content[0] & 7 in (0, 1, 2, 5):
            try:
                tried = list(_parse(content, depth + 1))
            except WireError:
                tried = []
            if all(f.number < 200 for f in tried) and _write(tried) == content:
                inner = tried
        found.append(_Field(one.number, one.kind, inner))
    return tuple(found)


def _write(message: list[_Field]) -> bytes:
    parts = []
    for one in message:
        parts.append(_varint(one.number << 3 | one.kind))
        if isinstance(one.value, int):
            parts.append(_varint(one.value))
            continue
        content = one.value if isinstance(one.value, bytes) else _write(one.value)
        if one.kind == 2:
            parts.append(_varint(len(content)))
        parts.append(content)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def protobuf(words: tuple[bytes, ...]) -> Mutate:
    """A mutation of messages, whose strings are sometimes replaced by one of `words`."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            root = [_copy(one) for one in _parse(data)]
        except WireError:
            return _bytes(data, rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            _mutate_one(root, words, rng)
        return _write(root)

    return mutate


def _mutate_one(root: list[_Field], words: tuple[bytes, ...], rng: random.Random) -> None:
    messages = _messages(root)
    message = rng.choice(messages)
    if not message:
        return
    at = rng.randrange(len(message))
    one = message[at]
    choice = rng.randrange(12)
    if choice == 0:
        del message[at]
    elif choice == 1:
        message.insert(rng.randrange(len(message) + 1), _copy(one))
    elif choice == 2:
        other = rng.choice(rng.choice(messages) or message)
        message[at] = _copy(other)
    elif choice == 3:
        other = rng.choice(rng.choice(messages) or message)
        one.value, one.kind = _copy(other).value, other.kind
    elif choice == 4:
        one.number = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 20, 50, 100, 2**29 - 1))
    elif choice == 5:
        one.kind = rng.choice((0, 1, 2, 3, 4, 5))
        one.value = b"\x00" * 8 if one.kind else rng.choice(NUMBERS)
    elif isinstance(one.value, int):
        one.value = rng.choice((*NUMBERS, max(0, one.value - 1), one.value + 1))
    elif isinstance(one.value, bytes):
        strings = [f.value for m in messages for f in m if isinstance(f.value, bytes)]
        one.value = rng.choice(
            (_bytes(one.value, rng), rng.choice(strings), rng.choice(words), one.value * 2, b"")
        )
        one.kind = one.kind if len(one.value) == 8 and one.kind == 1 else 2
    elif choice < 9:
        one.value = []
    else:
        one.value = _write(one.value)[: rng.choice((1, 7, 100, 1000))]


def _messages(root: list[_Field]) -> list[list[_Field]]:
    found, waiting = [], [root]
    while waiting:
        message = waiting.pop()
        found.append(message)
        waiting += [one.value for one in message if isinstance(one.value, list)]
    return found


def _copy(one: _Field) -> _Field:
    value = [_copy(inner) for inner in one.value] if isinstance(one.value, list) else one.value
    return _Field(one.number, one.kind, value)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes without a form: some flipped, cut out or put in."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        choice = rng.randrange(3)
        if choice == 0:
            changed[at : at + rng.choice((1, 2, 4, 8))] = b""
        elif choice == 1:
            changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
        else:
            changed[at : at + 1] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", rng.randbytes(1)))
        if not changed:
            break
    return bytes(changed)


_LAYERS = (b"conv bn scale conv2 bn2 conv3 up dw bias prelu fc").split()
_OPERATORS = (
    b"Conv ConvTranspose Gemm MatMul BatchNormalization Relu LeakyRelu PRelu Clip Add Sub Mul Div"
    b" Sum Mean Concat Split Slice Gather Reshape Transpose Flatten Squeeze Unsqueeze Expand Tile"
    b" Pad MaxPool AveragePool GlobalAveragePool ReduceMean ReduceSum Resize Upsample DepthToSpace"
    b" SpaceToDepth Identity Dropout Cast CastLike Sign Sqrt Shape Size Constant ConstantOfShape"
    b" Range Where Equal Max Min Pow Exp DequantizeLinear QuantizeLinear If Loop Scan Softmax"
    b" Neg Abs ReduceProd InstanceNormalization own ai.onnx"
).split()
_ATTRIBUTES = (
    b"axis axes perm pads strides dilations kernel_shape group auto_pad SAME_UPPER VALID alpha beta"
    b" transA transB epsilon training_mode keepdims value value_ints to mode nearest edge split"
    b" num_outputs blocksize allowzero start end ceil_mode count_include_pad"
).split()

caffemodel = protobuf((*_LAYERS, b"\x1b[2J", b"\xff\xfe", b"<script>"))
onnx = protobuf((*_OPERATORS, *_ATTRIBUTES, b"", b"\x1b[2J", b"\xff\xfe", b"<script>", b"../x"))


def caffe(separator: bytes) -> Mutate:
    """One of the two halves."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        network, _, weights = data.partition(separator)
        if rng.random() < 0.6:
            network = text(network, rng)
        else:
            weights = caffemodel(weights, rng)
        return network + separator + weights

    return mutate
