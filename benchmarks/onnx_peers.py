"""The tools for ONNX files that bnfold is measured against. Runs in an environment of their own.

    python onnx_peers.py versions                       prints {tool: version} as JSON
    python onnx_peers.py TOOL IN.onnx OUT.onnx          one file, as a user would do it
    python onnx_peers.py TOOL --folder IN OUT           every file of a folder, each in a process
                                                        forked after the imports, so that a crash
                                                        costs one file; prints {file: error} as JSON

Each tool does all that it offers for the purpose. Needs nothing but the tools: not bnfold, not
the other benchmarks.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def load_and_save() -> Callable[[str, str], None]:
    """What no tool that reads and writes a file can undercut."""
    import onnx

    return lambda source, target: onnx.save(onnx.load(source), target)


def onnxsim() -> Callable[[str, str], None]:
    """Its simplifier, all defaults."""
    import onnx
    from onnxsim import simplify

    def run(source: str, target: str) -> None:
        model, _ = simplify(onnx.load(source))
        onnx.save(model, target)

    return run


def onnxslim() -> Callable[[str, str], None]:
    """Its one call, all defaults."""
    from onnxslim import slim

    def run(source: str, target: str) -> None:
        slim(source, target)

    return run


def onnxoptimizer() -> Callable[[str, str], None]:
    """All passes that fuse or eliminate."""
    import onnx
    import onnxoptimizer as tool

    passes = tool.get_fuse_and_elimination_passes()
    return lambda source, target: onnx.save(tool.optimize(onnx.load(source), passes), target)


def onnxscript() -> Callable[[str, str], None]:
    """Its optimizer, whose default rules fold BatchNorms, and the rules for affine steps."""
    import onnx
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules.common import _fuse_batchnorm, _fuse_conv_affine

    def run(source: str, target: str) -> None:
        model = optimizer.optimize(onnx.load(source))
        for module in (_fuse_batchnorm, _fuse_conv_affine):
            model = rewriter.rewrite(model, pattern_rewrite_rules=list(_rules_of(module)))
        onnx.save(model, target)

    return run


def _rules_of(module: object) -> list[object]:
    return [value for name, value in sorted(vars(module).items()) if name.endswith("_rule")]


def onnxruntime() -> Callable[[str, str], None]:
    """Its offline optimiser at the extended level: the file that it writes."""
    import onnxruntime as tool

    def run(source: str, target: str) -> None:
        options = tool.SessionOptions()
        options.graph_optimization_level = tool.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = target
        options.log_severity_level = 4
        tool.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return run


TOOLS: dict[str, Callable[[], Callable[[str, str], None]]] = {
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer,
    "onnxscript": onnxscript,
    "onnxruntime": onnxruntime,
}


def versions() -> dict[str, str]:
    """The version of each tool that is installed."""
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run_folder(tool: str, source: Path, target: Path) -> dict[str, str | None]:
    """Every file of a folder; None where the tool came to an end, else what happened."""
    run = TOOLS[tool]()
    outcome: dict[str, str | None] = {}
    for file in sorted(source.glob("*.onnx")):
        outcome[file.name] = _in_a_fork(run, str(file), str(target / file.name))
    return outcome


def _in_a_fork(run: Callable[[str, str], None], source: str, target: str) -> str | None:
    notes = f"{target}.error"
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            run(source, target)
        except BaseException:
            Path(notes).write_text(traceback.format_exc().strip().splitlines()[-1])
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return None if status == 0 else Path(notes).read_text()


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    if arguments == ["versions"]:
        print(json.dumps(versions()))
        return 0
    tool, *rest = arguments
    if rest[0] == "--folder":
        print(json.dumps(run_folder(tool, Path(rest[1]), Path(rest[2]))))
        return 0
    ({**TOOLS, "load+save": load_and_save}[tool]())(rest[0], rest[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
