"""Random Caffe nets: every layer type with odd options, in place and not, with many readers.

A net is text, so that what is folded goes through all of the frontend. `assert_is_legal` says
whether Caffe would take it: the rules for names of Net::AppendTop and InsertSplits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.frontends.caffe.made_up import tested_layers
from tests.frontends.caffe.plain_text import Message

Shape = tuple[int, ...]
_TOKENS = re.compile(r'"[^"]*"|[{}]|\s+|[^\s{}"]+')


@dataclass
class RandomNet:
    """A net that grows layer by layer."""

    rng: np.random.Generator
    blobs: dict[str, Shape] = field(default_factory=dict)
    """What a layer may read."""
    readers: Counter[str] = field(default_factory=Counter)
    """Of the latest version of each name."""
    lines: list[str] = field(default_factory=list)
    count: int = 0
    unknown: bool = True
    """Whether layers appear that no Caffe knows."""
    shapes: dict[str, Shape] = field(default_factory=dict)
    """Of the inputs."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def open_text(self) -> str:
        """The same net without a word about the size of its inputs."""
        heads = []
        for number, (name, shape) in enumerate(self.shapes.items()):
            # Data makes images; of what HDF5Data makes not even the number of axes is known.
            kind = "Data" if len(shape) == 4 and (number + self.count) % 3 else "HDF5Data"
            heads.append(f'layer {{ name: "{name}" type: "{kind}" top: "{name}" }}')
        return "\n".join([*heads, *self.lines[len(self.shapes) :]]) + "\n"

    def input(self, shape: Shape) -> None:
        name = f"in{len(self.blobs)}"
        dims = " ".join(f"dim: {n}" for n in shape)
        self.lines.append(f'input: "{name}"\ninput_shape {{ {dims} }}')
        self.blobs[name] = shape
        self.shapes[name] = shape

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, rank: int | None = None) -> str:
        """A blob, rather a late one."""
        names = [name for name, shape in self.blobs.items() if rank in (None, len(shape))]
        if not names:
            names = list(self.blobs)
        late = int(min(self.rng.geometric(0.45), len(names)))
        return names[-late]

    def add(
        self,
        kind: str,
        bottoms: list[str],
        shapes: list[Shape],
        options: str = "",
        *,
        may_be_in_place: bool = False,
    ) -> list[str]:
        self.count += 1
        name = f"layer{self.count}"
        in_place = (
            may_be_in_place
            and len(shapes) == 1
            and self.readers[bottoms[0]] == 0
            and bottoms.count(bottoms[0]) == 1
            and self.chance(0.6)
        )
        tops = [bottoms[0]] if in_place else [f"b{self.count}_{n}" for n in range(len(shapes))]
        for bottom in bottoms:
            self.readers[bottom] += 1
        wires = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
        self.lines.append(
            f'layer {{\n  name: "{name}" type: "{kind}"\n  {" ".join(wires)}\n  {options}\n}}'
        )
        for top, shape in zip(tops, shapes, strict=True):
            self.blobs.pop(top, None)
            self.blobs[top] = shape
            self.readers[top] = 0
        return tops


def random_net(seed: int, *, size: int = 14, unknown: bool = True) -> RandomNet:
    """A net of about `size` layers."""
    net = RandomNet(np.random.default_rng(seed), unknown=unknown)
    image = (2, int(net.rng.choice([2, 4, 6])), 6, 5)
    net.input(image)
    if net.chance(0.25):
        net.input((2, 4, 7) if net.chance(0.5) else image)
    _convolution(net)
    names = list(_LAYERS)
    weights = np.array([_LAYERS[name][1] for name in names], dtype=float)
    while net.count < size:
        _LAYERS[str(net.rng.choice(names, p=weights / weights.sum()))][0](net)
    return net


def _convolution(net: RandomNet) -> None:
    x = net.pick(4)
    n, c, h, w = _image(net, x)
    rng = net.rng
    group = int(rng.choice([g for g in (1, 1, 2, 3, c) if c % g == 0]))
    out = group * int(rng.integers(1, 4))
    k = int(rng.integers(1, min(4, h + 1, w + 1)))
    pad, stride, dilation = int(rng.integers(0, 2)), int(rng.integers(1, 3)), 1
    if k > 1 and min(h, w) + 2 * pad >= 2 * (k - 1) + 1 and net.chance(0.2):
        dilation = 2
    reach = dilation * (k - 1) + 1
    size = [(s + 2 * pad - reach) // stride + 1 for s in (h, w)]
    options = (
        f"convolution_param {{ num_output: {out} kernel_size: {k} pad: {pad} stride: {stride}"
        f" dilation: {dilation} group: {group} {_bias_term(net)} }}"
    )
    both = [x]
    if net.chance(0.1):
        both += [name for name, shape in net.blobs.items() if shape == (n, c, h, w)][:1]
    net.add("Convolution", both, [(n, out, *size)] * len(both), options)


def _convolution_1d(net: RandomNet) -> None:
    """Along the one spatial axis of (N, C, L), or along the last one of an image."""
    x = net.pick(3)
    shape = net.blobs[x]
    if len(shape) not in (3, 4):
        return
    axis = len(shape) - 2
    length = shape[-1]
    k = int(net.rng.integers(1, min(4, length + 1)))
    pad, out = int(net.rng.integers(0, 2)), int(net.rng.integers(1, 5))
    options = (
        f"convolution_param {{ num_output: {out} kernel_size: {k} pad: {pad} axis: {axis}"
        f" {_bias_term(net)} }}"
    )
    size = length + 2 * pad - k + 1
    kind = "Convolution"
    if k == 1 and pad == 0 and net.chance(0.3):
        kind = "Deconvolution"
    net.add(kind, [x], [(*shape[:axis], out, size)], options)


def _bias_term(net: RandomNet) -> str:
    return str(net.rng.choice(["", "bias_term: false", "bias_term: true"]))


def _deconvolution(net: RandomNet) -> None:
    x = net.pick(4)
    n, c, h, w = _image(net, x)
    if max(h, w) > 8:
        return
    group = int(net.rng.choice([g for g in (1, 2, 3, c) if c % g == 0]))
    out = group * int(net.rng.integers(1, 3))
    k, stride = int(net.rng.integers(1, 4)), int(net.rng.integers(1, 3))
    pad = int(net.rng.integers(0, 2)) if k > 2 else 0
    size = [stride * (s - 1) + k - 2 * pad for s in (h, w)]
    if min(size) < 1:
        return
    options = (
        f"convolution_param {{ num_output: {out} kernel_size: {k} pad: {pad} stride: {stride}"
        f" group: {group} {_bias_term(net)} }}"
    )
    net.add("Deconvolution", [x], [(n, out, *size)], options)


def _inner_product(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    if len(shape) < 2:
        return
    axis = 1 if net.chance(0.7) else int(net.rng.integers(1, len(shape)))
    out = int(net.rng.integers(2, 6))
    transpose = "transpose: true" if net.chance(0.3) else ""
    net.add(
        "InnerProduct",
        [x],
        [(*shape[:axis], out)],
        f"inner_product_param {{ num_output: {out} axis: {axis} {transpose} {_bias_term(net)} }}",
    )


def _batch_norm(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    if len(shape) < 2:
        return
    eps = net.rng.choice(["", "eps: 0.001", "eps: 0.25"])
    stats = net.rng.choice(["", "", "use_global_stats: true"])
    if net.chance(0.05):
        stats = "use_global_stats: false"
    made = net.add(
        "BatchNorm", [x], [shape], f"batch_norm_param {{ {eps} {stats} }}", may_be_in_place=True
    )
    if net.chance(0.7):
        bias = "scale_param { bias_term: true }" if net.chance(0.8) else ""
        net.add("Scale", made, [shape], bias, may_be_in_place=True)


def _scale(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    if len(shape) < 2:
        return
    form = str(net.rng.choice(["", "", "num_axes: 0", "axis: 0 num_axes: 2", "axis: -1"]))
    if form == "" and net.chance(0.15):
        form = "num_axes: -1"
    kind = "Bias" if net.chance(0.25) else "Scale"
    bias = "bias_term: true" if net.chance(0.5) and kind == "Scale" else ""
    options = f"{kind.lower()}_param {{ {form} {bias} }}"
    net.add(kind, [x], [shape], options, may_be_in_place=True)


def _power(net: RandomNet) -> None:
    x = net.pick()
    factor = net.rng.choice(["scale: -2", "scale: 0.5", "", "shift: 1.5", "scale: 0"])
    more = "shift: -0.75" if net.chance(0.3) and "shift" not in factor else ""
    net.add(
        "Power", [x], [net.blobs[x]], f"power_param {{ {factor} {more} }}", may_be_in_place=True
    )


def _activation(net: RandomNet) -> None:
    x = net.pick()
    kinds = ["ReLU"] * 6 + ["PReLU", "AbsVal", "ReLU6", "Dropout", "Sigmoid", "TanH", "ELU"]
    kind = str(net.rng.choice(kinds))
    options = ""
    if kind == "ReLU" and net.chance(0.25):
        options = "relu_param { negative_slope: 0.1 }"
    if kind == "PReLU" and (len(net.blobs[x]) < 2 or net.chance(0.3)):
        options = "prelu_param { channel_shared: true }"
    net.add(kind, [x], [net.blobs[x]], options, may_be_in_place=kind != "AbsVal")


def _pooling(net: RandomNet) -> None:
    x = net.pick(4)
    n, c, h, w = _image(net, x)
    pool = net.rng.choice(["MAX", "AVE"])
    if net.chance(0.2):
        options = f"pooling_param {{ pool: {pool} global_pooling: true }}"
        net.add("Pooling", [x], [(n, c, 1, 1)], options)
        return
    k, stride = int(net.rng.integers(1, 4)), int(net.rng.integers(1, 4))
    pad = int(net.rng.integers(0, 2)) if k > 1 else 0
    if k > min(h, w) + 2 * pad:
        return
    size = []
    for s in (h, w):
        length = -(-(s + 2 * pad - k) // stride) + 1
        if pad and (length - 1) * stride >= s + pad:
            length -= 1
        if (length - 1) * stride - pad >= s:
            return  # an empty window: NaN
        size.append(length)
    options = f"pooling_param {{ pool: {pool} kernel_size: {k} stride: {stride} pad: {pad} }}"
    net.add("Pooling", [x], [(n, c, *size)], options)


def _combine(net: RandomNet) -> None:
    x = net.pick()
    alike = [name for name, shape in net.blobs.items() if shape == net.blobs[x]]
    y = str(net.rng.choice(alike))
    operation = str(net.rng.choice(["", "", "", "operation: PROD", "operation: MAX"]))
    coeff = "coeff: 0.5 coeff: -2" if not operation and net.chance(0.4) else ""
    net.add("Eltwise", [x, y], [net.blobs[x]], f"eltwise_param {{ {operation} {coeff} }}")


def _residual(net: RandomNet) -> None:
    x = net.pick(4)
    n, c, h, w = _image(net, x)
    options = f"convolution_param {{ num_output: {c} kernel_size: 3 pad: 1 {_bias_term(net)} }}"
    (y,) = net.add("Convolution", [x], [(n, c, h, w)], options)
    net.add("Eltwise", [x, y], [(n, c, h, w)])


def _concat(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    if len(shape) < 2 or shape[1] > 12:
        return
    axis = 1 if net.chance(0.8) else int(net.rng.integers(0, len(shape)))
    fits = [
        name
        for name, other in net.blobs.items()
        if len(other) == len(shape)
        and all(a == b for n, (a, b) in enumerate(zip(shape, other, strict=True)) if n != axis)
    ]
    parts = [x, str(net.rng.choice(fits))]
    size = sum(net.blobs[part][axis] for part in parts)
    result = (*shape[:axis], size, *shape[axis + 1 :])
    net.add("Concat", parts, [result], f"concat_param {{ axis: {axis} }}")


def _slice(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    if len(shape) < 2 or shape[1] < 2:
        return
    cut = int(net.rng.integers(1, shape[1]))
    parts = [(shape[0], size, *shape[2:]) for size in (cut, shape[1] - cut)]
    net.add("Slice", [x], parts, f"slice_param {{ slice_point: {cut} }}")


def _view(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    kind = str(net.rng.choice(["Flatten", "Reshape", "Permute", "Split", "ShuffleChannel"]))
    if kind == "Flatten" and len(shape) > 2:
        net.add(kind, [x], [(shape[0], int(np.prod(shape[1:])))])
    elif kind == "Reshape" and len(shape) == 2 and shape[1] % 2 == 0:
        options = "reshape_param { shape { dim: 0 dim: -1 dim: 2 dim: 1 } }"
        net.add(kind, [x], [(shape[0], shape[1] // 2, 2, 1)], options)
    elif kind == "Reshape" and len(shape) == 4:
        options = "reshape_param { shape { dim: 0 dim: 0 dim: -1 dim: 1 } }"
        net.add(kind, [x], [(shape[0], shape[1], shape[2] * shape[3], 1)], options)
    elif kind == "Permute" and len(shape) == 4:
        order = [0, *(int(a) for a in net.rng.permutation([1, 2, 3]))]
        options = f"permute_param {{ {' '.join(f'order: {a}' for a in order)} }}"
        net.add(kind, [x], [tuple(shape[a] for a in order)], options)
    elif kind == "Split":
        net.add(kind, [x], [shape, shape])
    elif kind == "ShuffleChannel" and net.unknown and len(shape) == 4 and shape[1] % 2 == 0:
        net.add(kind, [x], [shape], "shuffle_channel_param { group: 2 }")


def _gate(net: RandomNet) -> None:
    x = net.pick(4)
    shape = _image(net, x)
    if net.chance(0.5):
        options = "pooling_param { pool: AVE global_pooling: true }"
        (small,) = net.add("Pooling", [x], [(*shape[:2], 1, 1)], options)
        (flat,) = net.add("Flatten", [small], [shape[:2]])
        net.add("Scale", [x, flat], [shape], "scale_param { axis: 0 }")
        return
    alike = [name for name, other in net.blobs.items() if other == shape]
    kind = "Bias" if net.chance(0.3) else "Scale"
    options = f"{kind.lower()}_param {{ axis: 0 }}"
    net.add(kind, [x, str(net.rng.choice(alike))], [shape], options)


def _opaque(net: RandomNet) -> None:
    x = net.pick()
    shape = net.blobs[x]
    kinds = ["Softmax", "LRN"] if len(shape) == 4 else ["Softmax"]
    if net.unknown:
        kinds.append("Strange")
    kind = str(net.rng.choice(kinds))
    if net.chance(0.1):
        net.add("Silence", [x], [])
    elif len(shape) > 1:
        net.add(kind, [x], [shape], may_be_in_place=kind == "Strange")


def _twins(net: RandomNet) -> None:
    """Two convolutions with one weight."""
    x = net.pick(4)
    n, c, h, w = _image(net, x)
    y = str(net.rng.choice([name for name, shape in net.blobs.items() if shape == (n, c, h, w)]))
    pad = int(net.rng.integers(0, 2))
    params = f'param {{ name: "w{net.count}" }} param {{ name: "b{net.count}" }}'
    if net.chance(0.3):
        params = f'param {{ name: "w{net.count}" }}'
    for one in (x, y):
        options = f"{params} convolution_param {{ num_output: {c} kernel_size: {2 * pad + 1}"
        net.add("Convolution", [one], [(n, c, h, w)], f"{options} pad: {pad} }}")


def _image(net: RandomNet, name: str) -> tuple[int, int, int, int]:
    """The shape of a blob; of an input, if it is no image."""
    shape = net.blobs[name]
    return shape if len(shape) == 4 else net.blobs["in0"]  # type: ignore[return-value]


_LAYERS: dict[str, tuple[Callable[[RandomNet], None], int]] = {
    "convolution": (_convolution, 6),
    "convolution along one axis": (_convolution_1d, 1),
    "deconvolution": (_deconvolution, 1),
    "inner product": (_inner_product, 2),
    "batch norm": (_batch_norm, 7),
    "scale": (_scale, 3),
    "power": (_power, 1),
    "activation": (_activation, 4),
    "pooling": (_pooling, 2),
    "combine": (_combine, 2),
    "residual": (_residual, 2),
    "concat": (_concat, 2),
    "slice": (_slice, 1),
    "view": (_view, 2),
    "gate": (_gate, 1),
    "opaque": (_opaque, 1),
    "twins": (_twins, 1),
}


def restyle(text: str, rng: np.random.Generator) -> str:
    """The same net in another hand: quotes, colons, angle brackets, separators, comments, CRLF."""
    quote = str(rng.choice(['"', "'"]))
    parts = []
    stack: list[str] = []
    for token in _TOKENS.findall(text):
        if token == "{":
            angle = rng.random() < 0.15
            stack.append(">" if angle else "}")
            parts.append((":" if rng.random() < 0.2 else "") + ("<" if angle else "{"))
        elif token == "}":
            parts.append(stack.pop())
        elif token.startswith('"'):
            parts.append(quote + token[1:-1] + quote)
        elif token.isspace():
            parts.append(_space(token, rng))
        else:
            parts.append(token)
    styled = "".join(parts)
    return styled.replace("\n", "\r\n") if rng.random() < 0.3 else styled


def _space(token: str, rng: np.random.Generator) -> str:
    """Blanks and line breaks may be more of them, a comment, or a separator less."""
    if rng.random() < 0.06:
        return f"  # {'layer { top: ' if rng.random() < 0.3 else 'a comment'}\n"
    if rng.random() < 0.1:
        return "\n\n\t"
    return token


def assert_is_legal(net: Message) -> None:
    """Whether Caffe takes the names of blobs: each version has one maker, and in-place is alone."""
    layers = tested_layers(net)
    version: dict[str, int] = dict.fromkeys(net.texts("input"), 0)
    readers: Counter[tuple[str, int]] = Counter()
    in_place: list[tuple[str, int]] = []
    for layer in layers:
        bottoms, tops = layer.texts("bottom"), layer.texts("top")
        for bottom in bottoms:
            assert bottom in version, f"{layer.text('name')} reads {bottom}, which nobody makes"
            readers[bottom, version[bottom]] += 1
        for position, top in enumerate(tops):
            if top in version:
                assert bottoms[position : position + 1] == [top], f"{top} is made twice"
                in_place.append((top, version[top]))
            version[top] = version.get(top, -1) + 1
    for one in in_place:
        assert readers[one] == 1, f"{one[0]} is overwritten, and another layer reads it"
