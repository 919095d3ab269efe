"""What merging gains: beside the network's own re-parameterisation, no merging, and the original.

For each network and runtime four variants run in turn in one process, on one thread; what is taken
is the processor time of the process, which other programs on the machine do not lengthen by theirs:

    folded      what bnfold makes of the network, merging
    own         the network's own re-parameterisation (timm's reparameterize_model), then folded
                without merging
    never       folded without merging
    original    the network as it came

    python -m benchmarks.merging                writes docs/benchmarks/merging.md and merging.json
    python -m benchmarks.merging --only timm:repvgg_a0 --measure counts program --seconds 2
    python -m benchmarks.merging --others       networks that are compared with the original only

What is left out keeps the figures that the .json has of it, so that a run can be taken up again;
--page writes the page anew without measuring.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import bnfold
from benchmarks.measure import outputs, relative_error
from benchmarks.merging_page import COUNTS, NETWORKS, OTHER_NETWORKS, Counts, Row, render
from benchmarks.onnx_exports import EXPORTERS, export_torchscript
from benchmarks.vision import load_vision
from benchmarks.zoo import create
from bnfold.bench.machine import machine
from bnfold.bench.run import Sample, samples
from bnfold.bench.settings import Setting, Subject, Wishes
from bnfold.bench.timing import Budget, Timed, on_clock, ratio
from bnfold.frontends.onnx.runtimes import OPTIMISED, PLAIN, OnnxSubject
from bnfold.frontends.torch.runtimes import EAGER, TorchSubject

PROGRAM = "exported program"
RUNTIMES = (OPTIMISED, PLAIN, PROGRAM, EAGER)
_FOLDER = Path("docs/benchmarks")
_IMAGE = 224

Convert = Callable[[nn.Module, Tensor], Any]
"""Makes what a runtime runs of a module and its input."""


# ---------------------------------------------------------------- making


def _reparameterised(model: nn.Module) -> nn.Module:
    """By the network's own code, as timm calls it."""
    load_vision()
    from timm.utils.model import reparameterize_model

    own: nn.Module = reparameterize_model(model, inplace=False)
    return own.eval()


@lru_cache(maxsize=1)
def _created(network: str) -> tuple[nn.Module, Tensor]:
    return create(network, dtype=torch.float32, image=_IMAGE, batch=1)


@lru_cache(maxsize=1)
def _variants(network: str, convert: Convert, *, others: bool) -> Mapping[str, Any]:
    """The variants in a runtime's format, made by `convert`; `others` are not compared with own."""
    model, example = _created(network)
    given = convert(model, example)
    made = {"original": given, "folded": _fold(given, example, "auto")}
    if others:
        return made
    own = _fold(convert(_reparameterised(model), example), example, "never")
    return {**made, "own": own, "never": _fold(given, example, "never")}


def _fold(given: Any, example: Tensor, merge: Literal["auto", "never"]) -> Any:
    if isinstance(given, nn.Module):
        return bnfold.fold(given, (example,), merge=merge, verify=False).model
    return bnfold.fold(given, merge=merge, verify=False).model


def _export(model: nn.Module, example: Tensor) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (example,))


def _itself(model: nn.Module, _example: Tensor) -> nn.Module:
    return model


CONVERT: Mapping[str, Convert] = {
    PLAIN: export_torchscript,
    OPTIMISED: export_torchscript,
    PROGRAM: _export,
    EAGER: _itself,
}


def _subject(network: str, runtime: str, *, others: bool) -> Subject:
    made = _variants(network, CONVERT[runtime], others=others)
    wishes = Wishes(threads=(1,))
    if runtime in (PLAIN, OPTIMISED):
        return OnnxSubject(made, None, runtimes=(runtime,), wishes=wishes)
    example = _created(network)[1]
    return TorchSubject(made, (example,), runtimes=(EAGER,), wishes=wishes)


# ---------------------------------------------------------------- counting


def count(network: str) -> Counts:
    """Convolutions in each format, and the largest error in float64."""
    found, differences = {}, {}
    for name, convert in {**EXPORTERS, "program": _export}.items():
        made = _variants(network, convert, others=False)
        ops = {key: _ops(variant) for key, variant in made.items()}
        found[name] = {key: _convolutions(counted) for key, counted in ops.items()}
        differences[name] = _more(ops["folded"], ops["own"])
        print(f"{network} {name}: {found[name]}", file=sys.stderr, flush=True)
    return Counts(network, found, differences, _error(network))


def _ops(model: Any) -> Counter[str]:
    """The ops by type."""
    if isinstance(model, ExportedProgram):
        calls = [node for node in model.graph.nodes if node.op == "call_function"]
        return Counter(str(node.target) for node in calls)
    functions = [node for function in model.functions for node in function.node]
    return Counter(node.op_type for node in [*model.graph.node, *functions])


def _convolutions(ops: Counter[str]) -> int:
    return sum(count for op, count in ops.items() if op == "Conv" or op.startswith("aten.conv"))


def _more(folded: Counter[str], own: Counter[str]) -> dict[str, int]:
    """What the one has more of; constants cost nothing."""
    differing = {op: folded[op] - own[op] for op in sorted({*folded, *own})}
    return {op: more for op, more in differing.items() if more and op not in _FREE}


_FREE = ("Constant", "Identity")


def _error(network: str) -> float:
    """Of the folded module and of the folded program, relative to the largest output."""
    model, example = create(network, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    inputs = [example, torch.randn(example.shape, generator=generator, dtype=torch.float64)]
    expected = outputs(model, inputs)
    module = bnfold.fold(model, (example,)).model
    program = bnfold.fold(_export(model, example)).model.module()
    return max(relative_error(expected, outputs(made, inputs)) for made in (module, program))


# ---------------------------------------------------------------- timing


def measure(network: str, runtime: str, budget: Budget, *, loads: int, others: bool) -> Row:
    """Time the variants in one runtime; each is loaded several times, as memory lies elsewhere."""
    subject = OnProcessor(_subject(network, runtime, others=others))
    notes: list[str] = []
    found: list[Sample] = []
    for _ in range(loads):
        found += samples(subject, budget, notes)
        gc.collect()
    seconds = {name: np.concatenate([s.seconds[name] for s in found]) for name in found[0].seconds}
    return Row(
        network=network,
        runtime=runtime,
        rounds=len(seconds["folded"]),
        loads=loads,
        milliseconds={name: 1e3 * float(np.median(taken)) for name, taken in seconds.items()},
        ratios={
            name: asdict(ratio(seconds["folded"], taken))
            for name, taken in seconds.items()
            if name != "folded"
        },
    )


class OnProcessor:
    """A subject whose times are those of the processor, for one thread."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.runtimes, self.variants = subject.runtimes, subject.variants
        self.settings = subject.settings

    def enter(self, setting: Setting) -> AbstractContextManager[None]:
        """As the subject does."""
        return self._subject.enter(setting)

    def timed(self, variant: str, runtime: str, setting: Setting) -> Timed:
        """The variant by the processor's clock."""
        return on_clock(self._subject.timed(variant, runtime, setting), time.process_time)

    def describe(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """As the subject does."""
        return self._subject.describe()


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the two files after each figure."""
    parser = argparse.ArgumentParser(description="What merging gains.")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--measure", nargs="+", choices=[COUNTS, *RUNTIMES])
    parser.add_argument("--others", action="store_true", help="compare with the original only")
    parser.add_argument("--missing", action="store_true", help="only what has no figures yet")
    parser.add_argument("--page", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--seconds", type=float, default=3.0, help="per runtime and loading")
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    record = Record(options.output)
    networks = options.only or (OTHER_NETWORKS if options.others else NETWORKS)
    wanted = options.measure or _usual(others=options.others)
    tasks = [(network, what) for network in networks for what in wanted]
    if options.missing:
        tasks = [task for task in tasks if not record.has(*task)]
    budget = Budget(seconds=options.seconds)
    for network, what in () if options.page else tasks:
        if what == COUNTS:
            record.add(counts=[count(network)])
            continue
        row = measure(network, what, budget, loads=options.loads, others=options.others)
        print(row, file=sys.stderr, flush=True)
        record.add(rows=[row])
    record.write()
    return 0


def _usual(*, others: bool) -> tuple[str, ...]:
    return (OPTIMISED, PLAIN, EAGER) if others else (COUNTS, *RUNTIMES)


class Record:
    """The two files: what was measured before, and now."""

    def __init__(self, folder: Path) -> None:
        self._data, self._page = folder / "merging.json", folder / "merging.md"
        self._counts: dict[str, Counts] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._data.exists():
            document = json.loads(self._data.read_text())
            self._take(
                [Counts(**entry) for entry in document["counts"]],
                [Row(**entry) for entry in document["rows"]],
            )

    def has(self, network: str, what: str) -> bool:
        """Whether there are figures of it."""
        return network in self._counts if what == COUNTS else (network, what) in self._rows

    def add(self, *, counts: Iterable[Counts] = (), rows: Iterable[Row] = ()) -> None:
        """Take new figures in place of old ones, and write both files."""
        self._take(counts, rows)
        self.write()

    def _take(self, counts: Iterable[Counts], rows: Iterable[Row]) -> None:
        self._counts.update((entry.network, entry) for entry in counts)
        self._rows.update(((row.network, row.runtime), row) for row in rows)

    def write(self) -> None:
        """Both files, in the order of the lists."""
        counts = _sorted(self._counts.values())
        rows = _sorted(self._rows.values())
        document = {"counts": [asdict(c) for c in counts], "rows": [asdict(row) for row in rows]}
        self._data.write_text(json.dumps(document, indent=1) + "\n")
        here = ", ".join(f"{k} {v}" for k, v in machine().items() if k != "load average")
        versions = f"PyTorch {torch.__version__}, ONNX {onnx.__version__}"
        versions += f", ONNX Runtime {onnxruntime.__version__}"
        self._page.write_text(render(counts, rows, RUNTIMES, f"{here}; {versions}"))


_Entry = TypeVar("_Entry", Counts, Row)


def _sorted(entries: Iterable[_Entry]) -> list[_Entry]:
    order = {name: place for place, name in enumerate((*NETWORKS, *OTHER_NETWORKS))}
    return sorted(entries, key=lambda entry: order.get(entry.network, len(order)))


if __name__ == "__main__":
    sys.exit(main())
