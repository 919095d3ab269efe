"""The page of `merging`: its networks, its figures, its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.markdown import table
from bnfold.bench.timing import Estimate

NETWORKS = (
    "timm:repvgg_a0",
    "timm:repvgg_a2",
    "timm:mobileone_s0",
    "timm:mobileone_s1",
    "timm:repvit_m0_9",
    "timm:repvit_m1",
    "timm:fastvit_t8",
    "timm:fastvit_sa12",
    "timm:ghostnetv3_100",
    "timm:repghostnet_050",
    "timm:efficientvim_m1",
    "timm:fastvit_mci0",
)
"""Those with a re-parameterisation of their own."""

OTHER_NETWORKS = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:resnetv2_50",
    "timm:densenet121",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_large_100",
    "timm:efficientnet_b0",
    "timm:ghostnet_100",
    "timm:regnety_002",
    "timm:mixnet_s",
    "timm:levit_128s",
    "timm:hrnet_w18_small",
    "timm:res2net50_14w_8s",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:mobilevit_xxs",
    "timm:fastvit_t12",
    "timm:repvgg_b0",
)
"""Those that are compared with the original only."""

COUNTS = "counts"
EXPORTS = ("torchscript", "dynamo", "program")
_MODULE = "eager"

_HEAD = """# Merging: what it gains

One image of 224 x 224, float32, one thread, random weights and statistics (5% of the gammas
negative). "Folded" is what bnfold makes of the network, branches merged; "own" the network's own
re-parameterisation (timm's `reparameterize_model`), then folded without merging; "not merged" the
network folded with `merge="never"`. All variants of a line run in turn in one process. Times are
processor time, as other programs ran beside. Each variant is loaded several times, as one file
loaded twice differs by up to 1.2%: its memory lies elsewhere. A ratio is the median of the ratios
of all rounds, in brackets its 95% interval (of the rounds, not of the loadings). Below 1, the
folded network is faster.

"""

_MISSED = """
## Where it costs more, and why

The aim is at most 1.02 of "own" in ONNX Runtime and as program, at most 1.08 as module, and never
more than the original. What misses it:

- Exported RepViT and EfficientViM: the parameters of BatchNorms that the fold itself removes stay
  in the program, read by nobody (415 and 110), and the program's module fetches each in every call.
  Without these, measured by hand: 1.01 and 1.00 of "own".
- MobileOne as program and module: `out = 0; out += branch(x)` stays where the sum is not nothing by
  then; as a module also the calls of branches that return nothing. The networks take 14 to 41 ms.
- EfficientViM in ONNX Runtime: the coefficients of its sums are computed in the graph, as
  `sigmoid(alpha)[i]`, and its own code does so before.

RepGhostNet in optimised ONNX Runtime (1.02) and MobileOne-S1 in unoptimised (1.03) run the ops of
"own"; so there a ratio of that size is none.

The 18 networks that are compared with the original only were measured on a noisier machine, which
the wide intervals show. Res2Net (1.08) and ResNet-50 (1.01) run there what ONNX Runtime's own
optimisation makes of the original: the same ops, 149 and 53 convolutions.
"""

_FOOT = """
{machine}.
Made by `python -m benchmarks.merging` and `python -m benchmarks.merging --others`.
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """Convolutions of one network."""

    network: str
    convolutions: Mapping[str, Mapping[str, int]]
    """By format and variant."""
    differences: Mapping[str, Mapping[str, int]]
    """By format: ops that the folded network has more of than the one that merged itself."""
    error: float
    """The largest in float64, of the folded module and program."""


@dataclass(frozen=True, slots=True)
class Row:
    """One network in one runtime."""

    network: str
    runtime: str
    rounds: int
    loads: int
    """How many times each variant was loaded, the rounds in equal parts."""
    milliseconds: Mapping[str, float]
    """Median of each variant."""
    ratios: Mapping[str, Mapping[str, float]]
    """Folded over each other variant: value, low, high."""

    def ratio(self, variant: str) -> str:
        """Folded over that variant, in words."""
        found = self.ratios.get(variant)
        return "" if found is None else str(Estimate(**found))


def render(
    counts: Sequence[Counts], rows: Sequence[Row], runtimes: Sequence[str], machine: str
) -> str:
    """The page."""
    text = _HEAD + "## Convolutions\n\n" + _COUNTS + "\n" + _count_table(counts)
    for runtime in runtimes:
        text += f"\n## {_TITLES[runtime]}\n\n"
        text += _time_table([row for row in rows if row.runtime == runtime and row.ratio("own")])
    text += "\n## Beside the original\n\n" + _original_text(rows) + "\n" + _original_table(rows)
    return text + _MISSED + _FOOT.format(machine=machine)


_TITLES = {
    "onnxruntime optimised": "ONNX Runtime, its optimisations on",
    "onnxruntime": "ONNX Runtime, its optimisations off",
    "exported program": "Exported program",
    "eager": "Module, eager",
}

_COUNTS = """As ONNX from both exporters of PyTorch and as exported program: in the original, in
"own", and after the fold with merging. "Other ops" says which ops the folded network has more or
fewer of than "own". The error is the largest of the folded module's and the folded program's
outputs in float64, relative to the largest output.
"""


def _count_table(counts: Iterable[Counts]) -> str:
    header = ["network", *(f"{name}: original, own, folded" for name in EXPORTS)]
    header += ["other ops", "error"]
    body = []
    for entry in counts:
        cells = [", ".join(str(entry.convolutions[name][v]) for v in _VARIANTS) for name in EXPORTS]
        body.append([entry.network, *cells, _differences(entry), f"{entry.error:.0e}"])
    return table(header, body)


def _differences(entry: Counts) -> str:
    words = [
        f"{name}: {', '.join(f'{count:+} {op}' for op, count in found.items())}"
        for name, found in entry.differences.items()
        if found
    ]
    return "; ".join(words) or "none"


_VARIANTS = ("original", "own", "folded")


def _time_table(rows: Iterable[Row]) -> str:
    header = ["network", "original, ms", "folded, ms", "folded / own", "folded / not merged"]
    header += ["folded / original", "rounds"]
    body = []
    for row in rows:
        cells = [row.network, *(f"{row.milliseconds[name]:.2f}" for name in ("original", "folded"))]
        cells += [row.ratio(name) for name in ("own", "never", "original")]
        body.append([*cells, str(row.rounds)])
    return table(header, body)


def _by_network(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.network, {})[row.runtime] = row
    return found


def _original_text(rows: Sequence[Row]) -> str:
    networks = len(_by_network(rows))
    slower = [
        f"{row.network} in {row.runtime}"
        for row in rows
        if row.ratios["original"]["low"] > 1 and row.ratios["original"]["value"] > _NOTHING
    ]
    verdict = "none" if not slower else "; ".join(slower)
    return f"{networks} networks. Slower than the original by more than 1%: {verdict}.\n"


_NOTHING = 1.01
"""Ratios nearer to 1 say nothing."""


def _original_table(rows: Iterable[Row]) -> str:
    runtimes = ("onnxruntime optimised", "onnxruntime", _MODULE)
    header = ["network", *(_TITLES[name] for name in runtimes)]
    body = [
        [network, *(found[r].ratio("original") if r in found else "" for r in runtimes)]
        for network, found in _by_network(rows).items()
    ]
    return table(header, body)
