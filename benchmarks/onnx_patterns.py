"""The small ONNX patterns of the laws, through bnfold and through the tools for ONNX files.

    python -m benchmarks.onnx_patterns --peers-python PATH       writes the page in docs/benchmarks

PATH is the Python of an environment with the tools installed (onnxsim, onnxslim, onnxoptimizer,
onnxscript, onnxruntime; those that are missing are left out). Per pattern and tool:

    a number   affine steps that the written file still runs (see onnx_count)
    wrong      its outputs are not those of the original, or it asks for other inputs
    invalid    ONNX Runtime does not load it
    crash      the tool raised or was killed, and wrote nothing

Numbers come from ONNX Runtime with its optimisations off, the truth from the reference evaluator
in float64 where the pattern has a float64 twin. "Wrong" begins at 20 times the error that the
original has, or 256 rounding units of its dtype where that is more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import bnfold
from benchmarks.markdown import table
from benchmarks.onnx_count import affine_steps
from tests.conformance.onnx_patterns import Pattern, load
from tests.conformance.onnx_run import Feed, error, feeds, run, run_exactly, session

_PAGE = Path("docs/benchmarks/onnx_patterns.md")
_WORKER = Path(__file__).with_name("onnx_peers.py")

_HEAD = """# ONNX patterns

{count} small models, each a case of the laws, through bnfold and the tools that fold in ONNX files.
A number says how many affine steps (BatchNormalization, or Mul, Div, Add, Sub by one constant per
channel) the written file still runs; "laws" says how many have to stay, because the laws allow no
more. bnfold folds with `clip="always"`, but for patterns about that.
*wrong*: the outputs are not those of the original. *invalid*: ONNX Runtime does not load
the file. *crash*: the tool raised or was killed, and there is no file. A number above "laws" means
that something foldable was left. Below it are: a BatchNorm whose statistics are NaN folded to NaN,
and onnxoptimizer on `conv_bn_overflows_float16`, which leaves the arithmetic on the weights in the
file to be done in float32 at every start. In the `*_can_be_overridden` patterns "wrong" means that
an input with a default is gone; onnxsim documents that it does so.

bnfold {bnfold}, {versions}; run by ONNX Runtime {runtime} with its own optimisations off.
Made by `python -m benchmarks.onnx_patterns --peers-python PATH`.
"""

_FOOT = """
What each pattern is:

{lines}"""


def main(arguments: list[str] | None = None) -> int:
    """Run everything, print and write the page."""
    parser = argparse.ArgumentParser(description="Small ONNX patterns through several tools.")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--output", type=Path, default=_PAGE)
    options = parser.parse_args(arguments)
    patterns = load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = _write(patterns, folder / "original")
        versions = peers_versions(options.peers_python)
        results = {"bnfold": _judge_all(patterns, originals, *_fold_all(patterns, folder))}
        for tool in versions:
            print(tool, versions[tool], file=sys.stderr)
            target = folder / tool
            target.mkdir()
            command = [options.peers_python, str(_WORKER), tool, "--folder"]
            answer = _json(*command, str(folder / "original"), str(target))
            results[tool] = _judge_all(patterns, originals, target, answer)
    page = _HEAD.format(
        count=len(patterns),
        bnfold=bnfold.__version__,
        versions=", ".join(f"{tool} {version}" for tool, version in versions.items()),
        runtime=onnxruntime.__version__,
    )
    page += f"\n{_summary(patterns, originals, results)}\n{_details(patterns, originals, results)}"
    lines = "".join(f"- `{name}`: {p.why}\n" for name, p in patterns.items())
    page += _FOOT.format(lines=lines)
    options.output.write_text(page)
    print(_summary(patterns, originals, results))
    return 0


def _write(patterns: Mapping[str, Pattern], folder: Path) -> dict[str, onnx.ModelProto]:
    folder.mkdir()
    models = {name: pattern.build() for name, pattern in patterns.items()}
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return models


def _fold_all(patterns: Mapping[str, Pattern], folder: Path) -> tuple[Path, dict[str, str | None]]:
    target = folder / "bnfold"
    target.mkdir()
    answer: dict[str, str | None] = {}
    for name, pattern in patterns.items():
        file = f"{name}.onnx"
        try:
            bnfold.fold(
                str(folder / "original" / file), output=str(target / file), clip=pattern.clip
            )
        except Exception as problem:  # a crash of any kind is what the column counts
            answer[file] = repr(problem)
        else:
            answer[file] = None
    return target, answer


def peers_versions(python: str) -> dict[str, str]:
    """The tools of an environment, with their versions; says on stderr which are missing."""
    found = {str(key): str(value) for key, value in _json(python, str(_WORKER), "versions").items()}
    missing = {"onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "onnxruntime"} - set(found)
    if missing:
        print(f"not installed, left out: {', '.join(sorted(missing))}", file=sys.stderr)
    return found


def _json(*command: str) -> dict[str, str | None]:
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(answer.stdout.strip().splitlines()[-1])
    assert isinstance(document, dict)
    return document


# ---------------------------------------------------------------- judging


def _judge_all(
    patterns: Mapping[str, Pattern],
    originals: Mapping[str, onnx.ModelProto],
    folder: Path,
    answers: Mapping[str, str | None],
) -> dict[str, str]:
    found = {}
    for name, pattern in patterns.items():
        file = f"{name}.onnx"
        if answers.get(file, "") is not None or not (folder / file).exists():
            found[name] = "crash"
        else:
            found[name] = judge(pattern, originals[name], folder / file)
    return found


def judge(pattern: Pattern, original: onnx.ModelProto, file: Path) -> str:
    """The number of affine steps left, or what is the matter with the file."""
    try:
        model = onnx.load(file)
        session(str(file))
    except Exception:  # what a runtime raises on a broken file is of any kind
        return "invalid"
    for feed in feeds(original, pattern.shapes):
        if _is_wrong(pattern, original, model, feed):
            return "wrong"
    return str(len(affine_steps(model)))


def _is_wrong(
    pattern: Pattern, original: onnx.ModelProto, model: onnx.ModelProto, feed: Feed
) -> bool:
    expected = run(original, feed)
    try:
        actual = run(model, feed)
    except Exception:  # it asks for other inputs than the original
        return True
    unit = float(np.finfo(pattern.dtype).eps)
    if not pattern.has_twin:
        return error(expected, actual) > 256 * unit
    truth = run_exactly(pattern.build(np.float64), feed)
    return error(truth, actual) > max(20 * error(truth, expected), 256 * unit)


# ---------------------------------------------------------------- the page


def _limit(pattern: Pattern, original: onnx.ModelProto) -> int:
    """How many steps have to stay."""
    return len(affine_steps(original)) - len(_removed_steps(pattern, original))


def _removed_steps(pattern: Pattern, original: onnx.ModelProto) -> list[str]:
    return [step for step in affine_steps(original) if step.split()[1] in pattern.removed]


def _summary(
    patterns: Mapping[str, Pattern],
    originals: Mapping[str, onnx.ModelProto],
    results: Mapping[str, Mapping[str, str]],
) -> str:
    """One line per tool."""
    limits = {name: _limit(pattern, originals[name]) for name, pattern in patterns.items()}
    rows = []
    for tool, found in results.items():
        words = Counter(cell for cell in found.values() if not cell.isdigit())
        as_laws = sum(cell == str(limits[name]) for name, cell in found.items())
        more = sum(cell.isdigit() and int(cell) > limits[name] for name, cell in found.items())
        cells = [as_laws, more, words["wrong"], words["invalid"], words["crash"]]
        rows.append([tool, *(str(cell) for cell in cells)])
    return table(
        ["tool", "folds what the laws allow", "folds less", "wrong", "invalid", "crash"], rows
    )


def _details(
    patterns: Mapping[str, Pattern],
    originals: Mapping[str, onnx.ModelProto],
    results: Mapping[str, Mapping[str, str]],
) -> str:
    rows = []
    for name, pattern in patterns.items():
        original = originals[name]
        cells = [str(len(affine_steps(original))), str(_limit(pattern, original))]
        cells += [
            f"**{found[name]}**" if not found[name].isdigit() else found[name]
            for found in results.values()
        ]
        rows.append([f"`{name}`", *cells])
    return table(["pattern", "steps", "laws", *results], rows)


if __name__ == "__main__":
    sys.exit(main())
