"""The random networks of `benchmarks.fuzz`, through the tools that bnfold is measured against.

    python -m benchmarks.fuzz_peers --networks 2000 --seed 0 --python PEERS/bin/python

ONNX models are float32 and are given to each tool of onnx_peers.py, each model in a process of its
own; the outcome is run by ONNX Runtime without optimisations of its own. torch.fx's fuse is given
the PyTorch modules, in float64. bnfold goes the same way as they do.

    crashed      the tool raises or dies, or its model cannot be run
    wrong        an output is off by more than 1e-3 of its largest value
    not traced   torch.fx cannot read the module

Networks whose own float32 run is off by more than 1e-5 of the float64 one are left out, and so are
those with a sign, which jumps: the limit is a hundred times what rounding does to the network, and
a network that rounding harms is not held against anybody. In float64, wrong is more than 1e-6.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

import bnfold
from benchmarks.markdown import put, table
from tests.property.networks.build_onnx import onnx_model
from tests.property.networks.build_torch import Model, run_torch, torch_inputs
from tests.property.networks.check import reference
from tests.property.networks.check_single import run_in_runtime
from tests.property.networks.description import Network
from tests.property.networks.strategy import networks

OWN, WRONG, WRONG_IN_FLOAT64 = 1e-5, 1e-3, 1e-6
TOOLS = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "onnxruntime")
BATCH = 50


def draw(seed: int, count: int) -> list[Network]:
    """So many networks."""
    drawn: list[Network] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(networks())
    def keep(network: Network) -> None:
        drawn.append(network)

    keep()
    return drawn


def error(expected: dict[str, Any], made: dict[str, Any]) -> float:
    """The largest difference, relative to the largest value of its output."""
    if expected.keys() != made.keys():
        return float("inf")
    worst = 0.0
    for name, wanted in expected.items():
        got = np.asarray(made[name])
        if got.shape != wanted.shape:
            return float("inf")
        size = max(float(np.abs(wanted).max(initial=0.0)), 1e-3)
        off = float(np.abs(got - wanted).max(initial=0.0)) / size
        worst = max(worst, off if np.isfinite(off) else float("inf"))
    return worst


Usable = list[tuple[int, Network, dict[str, Any]]]


def usable(drawn: list[Network], first: int, folder: Path) -> Usable:
    """Write the models that rounding does not harm; returns them with what they compute."""
    found: Usable = []
    for number, network in enumerate(drawn, first):
        expected = reference(network)
        if expected is None or "sign" in network.kinds:
            continue
        model = onnx_model(network, onnx.TensorProto.FLOAT)
        feed = {name: array.astype(np.float32) for name, array in network.feed().items()}
        try:
            own = run_in_runtime(model.SerializeToString(), feed)
        except Exception:  # ONNX Runtime has no such op: nothing can be judged
            continue
        if error(expected, own) > OWN:
            continue
        onnx.save(model, folder / f"{number}.onnx")
        found.append((number, network, expected))
    return found


def judge_onnx(found: Usable, target: Path, raised: dict[str, str | None]) -> Counter[str]:
    """What became of the models that a tool wrote."""
    counts: Counter[str] = Counter()
    for number, network, expected in found:
        name = f"{number}.onnx"
        feed = {key: array.astype(np.float32) for key, array in network.feed().items()}
        try:
            if raised[name] is not None:
                raise RuntimeError(raised[name])
            made = run_in_runtime((target / name).read_bytes(), feed)
        except Exception as problem:
            counts["crashed"] += 1
            counts[f"  {str(problem).splitlines()[-1][:90]}"] += 1
            continue
        counts["wrong" if error(expected, made) > WRONG else "right"] += 1
    return counts


def judge_bnfold(found: Usable, source: Path, target: Path) -> Counter[str]:
    """The same for bnfold."""
    raised: dict[str, str | None] = {}
    for number, _, _ in found:
        name = f"{number}.onnx"
        raised[name] = None
        try:
            bnfold.fold(source / name, output=target / name)
        except Exception as problem:
            raised[name] = repr(problem)
    return judge_onnx(found, target, raised)


def judge_torch(found: Usable) -> dict[str, Counter[str]]:
    """torch.fx's fuse, and bnfold, on the modules."""
    from torch.fx.experimental.optimization import fuse

    counts: dict[str, Counter[str]] = {"torch.fx": Counter(), "bnfold (module)": Counter()}
    for _, network, expected in found:
        inputs = torch_inputs(network, torch.float64)
        for tool, run in (
            ("torch.fx", lambda model: fuse(copy.deepcopy(model))),
            ("bnfold (module)", lambda model, inputs=inputs: bnfold.fold(model, inputs).model),
        ):
            try:
                made = run_torch(run(Model(network)), network)
            except Exception as problem:
                traced = tool != "torch.fx" or _can_be_traced(Model(network))
                counts[tool]["crashed" if traced else "not traced"] += 1
                counts[tool][f"  {type(problem).__name__}: {str(problem)[:70]}"] += 1
                continue
            off = error(expected, {name: value.numpy() for name, value in made.items()})
            counts[tool]["wrong" if off > WRONG_IN_FLOAT64 else "right"] += 1
    return counts


def _can_be_traced(model: torch.nn.Module) -> bool:
    """Whether torch.fx can read the module at all: if not, the fuse had no chance."""
    try:
        torch.fx.symbolic_trace(model)
    except Exception:
        return False
    return True


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", required=True, help="of the environment that has the tools")
    parser.add_argument("--json", type=Path, default=Path("out/fuzz_peers.json"))
    parser.add_argument("--docs", type=Path, help="the page whose table is to be replaced")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    script = str(Path(__file__).with_name("onnx_peers.py"))
    versions = subprocess.run([options.python, script, "versions"], capture_output=True, check=True)
    totals: dict[str, Counter[str]] = {}
    looked_at = drawn_at_all = 0
    for number in range(options.networks // BATCH):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            source.mkdir()
            drawn = draw(options.seed * 1_000_003 + number, BATCH)
            found = usable(drawn, number * BATCH, source)
            looked_at, drawn_at_all = looked_at + len(found), drawn_at_all + len(drawn)
            results = judge_torch(found)
            for tool in ("bnfold", *TOOLS):
                target = Path(folder) / tool
                target.mkdir()
                if tool == "bnfold":
                    results[tool] = judge_bnfold(found, source, target)
                    continue
                command = [options.python, script, tool, "--folder", str(source), str(target)]
                done = subprocess.run(command, capture_output=True, check=True)
                raised = json.loads(done.stdout.splitlines()[-1])
                results[tool] = judge_onnx(found, target, raised)
        for tool, counts in results.items():
            totals.setdefault(tool, Counter()).update(counts)
        short = {t: (c["wrong"], c["crashed"]) for t, c in totals.items()}
        print(f"{looked_at} of {drawn_at_all} networks, (wrong, crashed): {short}", flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "drawn": drawn_at_all,
            "networks": looked_at,
            "seed": options.seed,
            "versions": json.loads(versions.stdout) | {"torch": torch.__version__},
            "tools": totals,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.docs is not None:
        kinds = ("right", "wrong", "crashed", "not traced")
        rows = [[tool, *(str(counts[kind]) for kind in kinds)] for tool, counts in totals.items()]
        text = f"{looked_at:,} networks, seed {options.seed}.\n\n"
        put(options.docs, "peers", text + table(["Tool", *kinds], rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
