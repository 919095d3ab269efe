"""Borders that a file writes around what it pads: which are linear ops, and which are not.

The strips are written as PyTorch's exporter does: rows along the first axis, between Transposes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.frontends.onnx.merging import added, folded, ops


@dataclass
class Block:
    """1x1 with a bias, a border, 3x3; beside a 3x3 that pads. Each case changes one thing."""

    size: tuple[int | str, int | str] = (6, 7)
    is_open: bool = False
    """Whether the last rows are told by the size."""
    strips: tuple[tuple[int, int], ...] = ((2, 0), (2, -1), (3, 0), (3, -1))
    """The axis of each, and which row."""
    factor: float = 1.0
    """What of the bias is written."""
    counted: int = 0
    """Of which axis more the rows are counted."""
    is_read: bool = False
    is_per_channel: bool = True
    reduction: str = "none"
    is_mean: bool = False
    """Whether a mean and a BatchNormalization stand in the place of the last 3x3."""

    def __call__(self, s) -> None:
        x = s.input(2, 4, *self.size)
        weight = s.tensor("first_w", s.uniform(4, 4, 1, 1))
        bias = s.uniform(4)
        first = s.node("Conv", x, weight, s.tensor("first_b", bias), name="first")
        pads = s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)
        z = padded = s.node("Pad", first, pads, name="pad")
        values = (self.factor * bias).astype(s.dtype).reshape(1, 4, 1, 1)
        values = values if self.is_per_channel else values[:, :1] + 0 * values
        s.tensor("values", values)
        for number, (axis, row) in enumerate(self.strips):
            z = self.strip(s, z, number, axis, row)
        if self.is_mean:
            last = s.bn(s.node("AveragePool", z, name="pool", kernel_shape=[3, 3]), 4)
        else:
            last = s.conv(z, 4, 4, name="last")
        s.output(added(s, s.conv(x, 4, 4, name="wide", pad=1), last))
        if self.is_read:
            s.output(s.node("Relu", padded, name="other"))

    def strip(self, s, z: str, number: int, axis: int, row: int) -> str:
        """One row of an axis."""
        order = [0, 1, 2, 3]
        order[0], order[axis] = axis, 0
        turned = s.node("Transpose", z, name=f"turn{number}", perm=order)
        shape = s.node("Shape", z, name=f"shape{number}")
        one = s.integers(f"one{number}", 1)
        length = s.node("Concat", *(
            one if at == axis else
            s.node("Gather", shape, s.integers(f"at{number}_{at}", at), name=f"size{number}_{at}")
            for at in range(4)
        ), name=f"lengths{number}", axis=0)  # fmt: skip
        spread = s.node("Expand", "values", length, name=f"spread{number}")
        written = s.node("Transpose", spread, name=f"written{number}", perm=order)
        rows = self.rows(s, shape, number, axis, row)
        more = {} if self.reduction == "none" else {"reduction": self.reduction}
        new = s.node("ScatterND", turned, rows, written, name=f"write{number}", **more)
        return s.node("Transpose", new, name=f"back{number}", perm=order)

    def rows(self, s, shape: str, number: int, axis: int, row: int) -> str:
        if not self.is_open and row >= 0:
            return s.tensor(f"rows{number}", np.array([[row]], dtype=np.int64))
        if not self.is_open:
            length = self.size[axis - 2]
            assert isinstance(length, int)
            return s.tensor(f"rows{number}", np.array([[length + 2 + row]], dtype=np.int64))
        at = s.tensor(f"axis{number}", np.array(axis - self.counted, dtype=np.int64))
        count = s.node("Gather", shape, at, name=f"count{number}", axis=0)
        zero, one = (s.tensor(f"{v}_{number}", np.array(v, dtype=np.int64)) for v in (0, 1))
        every = s.node("Range", zero, count, one, name=f"every{number}")
        end = row + 1 or np.iinfo(np.int64).max
        cut = [s.integers(f"cut{number}_{n}", v) for n, v in enumerate((row, end, 0, 1))]
        rows = s.node("Slice", every, *cut, name=f"cut{number}")
        return s.node("Unsqueeze", rows, s.integers(f"new{number}", 1), name=f"rows{number}")


KEPT = {
    "one is missing": Block(strips=((2, 0), (2, -1), (3, 0))),
    "one is elsewhere": Block(strips=((2, 0), (2, -1), (3, 0), (3, -1), (2, 2))),
    "another number": Block(factor=1.5),
    "one number for all channels": Block(is_per_channel=False),
    "what is padded is read": Block(is_read=True),
    "it is added": Block(reduction="add"),
    "rows counted of another axis": Block(size=("h", "h"), is_open=True, counted=1),
    "a row that another size has elsewhere": Block(
        size=(6, "w"), strips=((2, 0), (2, -1), (3, 0), (3, 3))
    ),
}  # fmt: skip


@pytest.mark.parametrize("draw", KEPT.values(), ids=KEPT.keys())
def test_it_stays(draw) -> None:
    made, report = folded(draw)
    assert ops(made).count("Conv") == 3 and not report.merged


@pytest.mark.parametrize(
    "draw",
    [
        Block(),
        Block(is_open=True),
        Block(size=(6, "w"), is_open=True),
        Block(size=("h", "w"), is_open=True),
        Block(size=("h", "w"), is_open=True, is_mean=True),
        Block(strips=((3, -1), (2, 0), (3, 0), (2, -1))),
    ],
)
def test_what_a_convolution_makes_of_zeros(draw) -> None:
    made, report = folded(draw)
    assert ops(made) == ["Conv"] and report.merged
