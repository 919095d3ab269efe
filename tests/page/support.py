"""Reports to be shown: a made-up residual network of any length, with every state in it."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

from bnfold import FoldReport, Item, Kept, Reason, Removed
from bnfold.bench.result import BenchResult
from bnfold.bench.rows import BenchRow
from bnfold.network import INPUT, OUTPUT, Network, NetworkNode, State
from bnfold.verify.findings import LayerDifference, OutputDifference
from bnfold.verify.result import VerifyResult

NASTY = (
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "<!-- <script>",
    "a\u2028b\u2029c",
    "x' onmouseover='alert(3)",
    "\x1b[2J\x00\x7f\x9b31m\r\n\t",
    "\u202egnp.exe",
    "half \ud800 pair",
    "]]>&amp;&lt;",
    "${title} $style {0} %s",
)
"""Names that do harm where they are not escaped."""


def made_up(layers: int, *, names: tuple[str, ...] = ()) -> FoldReport:
    """A residual network of about so many ops; every 7th BatchNorm is kept.

    `names` take the place of the first names.
    """
    nodes = [NetworkNode("image", INPUT)]
    items: list[Item] = []
    given = list(names)
    block, skip = 0, 0
    while len(nodes) < layers:
        for kind in ("Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d"):
            name = (
                given.pop(0) if given else f"stage{block // 8}.{block}.{kind.lower()}{len(nodes)}"
            )
            node = NetworkNode(name, kind, (len(nodes) - 1,))
            if kind == "BatchNorm2d":
                is_kept = len(items) % 7 == 3
                conv = nodes[-1]
                if is_kept:
                    nodes[-1] = conv._replace(blocker=True)
                    outcome = Kept(Reason.PADDING, conv.name, "a detail")
                else:
                    nodes[-1] = conv._replace(state=State.EDITED)
                    outcome = Removed((conv.name,))
                items.append(Item(name, kind, 8 * (1 + block % 5), 1, outcome))
                state = State.KEPT if is_kept else State.REMOVED
                node = node._replace(state=state, item=name)
            elif kind == "ReLU" and block % 3 == 1:
                node = node._replace(state=State.BOUNDS)
            nodes.append(node)
        nodes.append(NetworkNode(f"add in {block}", "add", (len(nodes) - 1, skip)))
        skip = len(nodes) - 1
        block += 1
    nodes.append(NetworkNode("scores", OUTPUT, (len(nodes) - 1,)))
    clips = tuple(node.name for node in nodes if node.state is State.BOUNDS)
    notes = names[:1] or ("A note.",)
    return FoldReport(tuple(items), clips, notes, {"torch": "2.13.0"}, Network(tuple(nodes)))


def verified(report: FoldReport, name: str = "scores") -> VerifyResult:
    """Errors that grow along the network."""
    output = OutputDifference(
        name, "float32", (4, 1000), 3e-6, 4e-7, 2e-6, 1e-6, 0.9999999, 1.0, 2e-6, 1.8e-6, 1e-5, True
    )
    assert report.network is not None
    layers = tuple(
        LayerDifference(node.name, node.kind, 1e-7 * (1 + at) ** 0.5, 1e-7, True)
        for at, node in enumerate(report.network.after[1:-1])
    )
    layers += (LayerDifference(name, "Linear", float("inf"), None, False, 1e-6, 3),)
    return VerifyResult(
        False, (output,), layers, name, 4, 0, "float64", {"torch": "2.13.0"}, ("n",)
    )


def measured(name: str = "eager") -> BenchResult:
    """Two variants in two runtimes."""
    first = BenchRow(
        *("original", name, "cpu", "float32", "contiguous", 1, 2, 200),
        *(0.0762, 0.075, 0.081, 1.0, 1.0, 1.0),
    )
    folded = replace(
        first, variant="folded", median=0.0702, ratio=0.921, ratio_low=0.91, ratio_high=0.93
    )
    return BenchResult((first, folded), {"processor": name}, {"torch": "2.13.0"}, ("quiet",))


def page(report: FoldReport, *, title: str = "made up") -> str:
    """Everything that a page can show."""
    return dataclasses.replace(report, verdict=verified(report)).to_html(
        title=title,
        bench=measured(),
        hashes={"read: net.onnx": "0" * 64, "written: net.folded.onnx": "ab" * 32},
    )
