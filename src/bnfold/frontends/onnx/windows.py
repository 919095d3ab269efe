"""Where the taps of a Conv, ConvTranspose or pooling read, as the node states it.

https://onnx.ai/onnx/operators/onnx__Conv.html and the like
"""

from __future__ import annotations

from bnfold.core import graph as g
from bnfold.core.window import Window, same_padding
from bnfold.frontends.onnx.nodes import Node

_SAME = ("SAME_UPPER", "SAME_LOWER")
Axes = tuple[int, ...]


def window_of(node: Node, kernel: Axes) -> Window | None:
    """The window of a node; None if it is not known."""
    steps = _steps(node, kernel)
    is_transposed = node.op == "ConvTranspose"
    if steps is None or (is_transposed and node.integers("output_shape")):
        return None
    stride, dilation, before, after = steps
    mode = node.text("auto_pad", "NOTSET")
    if mode in _SAME and is_transposed:
        return None
    if mode in _SAME and set(stride) != {1} and set(kernel) != {1}:  # one tap needs no zeros
        return Window(kernel, stride, dilation, before, after, rule=mode)
    if is_transposed:
        more = node.integers("output_padding") or (0,) * len(kernel)
        after = tuple(pad - own for pad, own in zip(after, more, strict=True))
    return Window(kernel, stride, dilation, before, after, is_transposed)


def centre_of(node: Node, kernel: Axes) -> Axes | None:
    """The tap at offset 0 of a convolution, transposed or not."""
    steps = _steps(node, kernel)
    if steps is None or node.integers("output_shape") or any(node.integers("output_padding")):
        return None
    return g.centre_tap(kernel, *steps)


def crosses_zeros(node: Node, kernel: Axes) -> bool:
    """Whether outputs of a convolution see padded zeros, or different sets of taps."""
    mode = node.text("auto_pad", "NOTSET")
    if node.op == "ConvTranspose":
        return (
            any(taps > 1 for taps in kernel)
            or any(stride > 1 for stride in node.integers("strides"))
            or any(pad != 0 for pad in node.integers("pads"))
            or any(pad != 0 for pad in node.integers("output_padding"))
            or bool(node.integers("output_shape"))
            or mode not in ("NOTSET", "VALID")
        )
    if mode == "NOTSET":
        return any(pad != 0 for pad in node.integers("pads"))
    return mode != "VALID" and any(taps > 1 for taps in kernel)


def _steps(node: Node, kernel: Axes) -> tuple[Axes, Axes, Axes, Axes] | None:
    """Stride, dilation, and padding in front and behind; None if it is not one for each axis."""
    rank = len(kernel)
    mode = node.text("auto_pad", "NOTSET")
    stride = node.integers("strides") or (1,) * rank
    dilation = node.integers("dilations") or (1,) * rank
    if len(stride) != rank or len(dilation) != rank:
        return None
    if mode in _SAME:
        half, rest = same_padding(kernel, dilation)
        before, after = (half, rest) if mode == "SAME_UPPER" else (rest, half)
        return stride, dilation, before, after
    pads = () if mode == "VALID" else node.integers("pads")
    before, after = (pads[:rank], pads[rank:]) if pads else ((0,) * rank, (0,) * rank)
    if len(before) != rank or len(after) != rank:
        return None
    return stride, dilation, before, after
