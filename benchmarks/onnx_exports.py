"""Networks exported to ONNX by both exporters of PyTorch, folded, and compared with the module.

The same network must get the same decisions in every frontend. The module, the exported program
and the two ONNX files are compared BatchNorm by BatchNorm: exporters write into each node from
which submodule it comes. What may differ: a module gives bounds to an activation only where it is
a module of its own that is called once; in a graph each has a node to itself.

Outputs are compared with the float64 module: the folded file, run by ONNX Runtime with its
optimisations off, may be as far from it as the file that the exporter wrote, times a small factor.

    python -m benchmarks.onnx_exports          writes docs/benchmarks/onnx_exports.md
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import bnfold
from benchmarks.markdown import table
from benchmarks.onnx_count import affine_steps
from benchmarks.randomize import batchnorm_modules
from benchmarks.zoo import create
from bnfold import FoldReport

NETWORKS = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:resnet152",
    "timm:resnetv2_50",
    "timm:densenet121",
    "timm:levit_128s",
    "timm:mixnet_s",
    "timm:repvgg_a0",
    "timm:hrnet_w18_small",
    "torchvision:shufflenet_v2_x1_0",
    "timm:convmixer_768_32",
    "timm:mobilenetv2_100",
    "timm:efficientnet_b0",
    "timm:ghostnet_100",
    "timm:regnety_002",
    "timm:dla34",
    "timm:res2net50_14w_8s",
    "timm:mobileone_s1",
    "torchvision:inception_v3",
    "torchvision:googlenet",
)
_PAGE = Path("docs/benchmarks/onnx_exports.md")

_HEAD = """# Networks exported to ONNX

{count} networks with random statistics, exported by both exporters of PyTorch {torch} with their
BatchNorms preserved, then folded with `clip="always"`. The columns say how many of the BatchNorms
are gone: in the PyTorch module, in the exported program, and in the two ONNX files. "Rounding" is
the largest error of the folded file's outputs, as a multiple of the error that the exporter's file
has (ONNX Runtime {runtime}, float32, its own optimisations off, against the module in float64).

Made by `python -m benchmarks.onnx_exports`.
"""

Outcome = dict[str, str | None]
"""Per BatchNorm, by module path: None where it is gone, else the reason."""


# ---------------------------------------------------------------- exporting


def export_dynamo(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    """PyTorch's present exporter; its optimizer would fold BatchNorms itself, so it stays off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (example,), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    return program.model_proto


def export_torchscript(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    """The exporter before it, told to leave BatchNorms as they are."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            buffer,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=17,
        )
    return onnx.load_from_string(buffer.getvalue())


EXPORTERS: dict[str, Callable[[nn.Module, Tensor], onnx.ModelProto]] = {
    "dynamo": export_dynamo,
    "torchscript": export_torchscript,
}


def module_path(node: onnx.NodeProto) -> str | None:
    """The submodule that a node was exported from; None if the exporter did not say."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else None
    if node.name.startswith("/"):
        # "/layer1/layer1.0/bn1/BatchNormalization": a child of a container repeats its parent.
        path: list[str] = []
        for scope in node.name.split("/")[1:-1]:
            if path and scope.startswith(f"{path[-1]}."):
                path.pop()
            path.append(scope)
        return ".".join(path)
    return None


# ---------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True)
class Row:
    """One network and one exporter."""

    network: str
    exporter: str
    batch_norms: int
    """How many the exporter wrote."""
    module: Outcome
    program: Outcome
    exported: Outcome
    steps_left: int
    """Affine steps that the folded file still runs."""
    rounding: float
    """Error of the folded file / error of the exported one."""


def measure(network: str, exporter: str, *, image: int | None = None) -> Row:
    """Export, fold, compare; `image` is the size of the example, where the usual is too large."""
    model, example, module, program = _in_pytorch(network, image)
    exported = EXPORTERS[exporter](model, example)
    folded, report = bnfold.fold(exported, clip="always")
    onnx.checker.check_model(folded)
    norms = {n.name: n for n in exported.graph.node if n.op_type == "BatchNormalization"}
    paths = {name: module_path(node) or name for name, node in norms.items()}
    return Row(
        network=network,
        exporter=exporter,
        batch_norms=len(norms),
        module=module,
        program=program,
        exported={paths[item.name]: _reason(item) for item in report.items if item.name in paths},
        steps_left=len(affine_steps(folded)),
        rounding=_rounding(model, example, exported, folded),
    )


@lru_cache(maxsize=1)
def _in_pytorch(network: str, image: int | None) -> tuple[nn.Module, Tensor, Outcome, Outcome]:
    """A network, its example, and what becomes of it as a module and as a program."""
    model, example = create(network, dtype=torch.float32, image=image)
    module = bnfold.inspect(model, example, clip="always")
    program = bnfold.inspect(torch.export.export(model, (example,)), clip="always")
    return model, example, _of_modules(module, model), _of_modules(program, model)


def _of_modules(report: FoldReport, model: nn.Module) -> Outcome:
    names = {name for name, _ in batchnorm_modules(model)}
    found: Outcome = {}
    for item in report.items:
        if item.name in names:
            found[item.name] = _reason(item)
    return found


def _reason(item: bnfold.Item) -> str | None:
    return None if item.is_removed else str(item.reason)


def _rounding(
    model: nn.Module, example: Tensor, exported: onnx.ModelProto, folded: onnx.ModelProto
) -> float:
    with torch.no_grad():
        truth = model.double()(example.double())
    model.float()
    expected = truth.numpy() if isinstance(truth, Tensor) else truth[0].numpy()
    own = _error(expected, run(exported, example))
    return _error(expected, run(folded, example)) / max(own, 4 * float(np.finfo(np.float32).eps))


def run(model: onnx.ModelProto, example: Tensor) -> NDArray[np.float32]:
    """The first output in ONNX Runtime, its own optimisations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (name,) = [value.name for value in session.get_inputs()]
    return np.asarray(session.run(None, {name: example.numpy()})[0])


def _error(expected: NDArray[np.float64], actual: NDArray[np.float32]) -> float:
    return float(np.abs(expected - actual).max() / np.abs(expected).max())


_NO_ROOM = ("activation", "functional", "module-does-more", "shared", "hook")
"""What a module may keep that a graph need not: it has no place for the edit."""


def differences(row: Row) -> list[str]:
    """BatchNorms whose outcome differs without an excuse, with the outcomes.

    The exported program is a graph as the ONNX file is: no excuse. A module may keep what it has
    no place for.
    """
    found = []
    for name in sorted({*row.program, *row.exported}):
        module = row.module.get(name, "missing")
        program = row.program.get(name, "missing")
        exported = row.exported.get(name, "missing")
        excused = exported is None and module in _NO_ROOM
        if exported != program or (exported != module and not excused):
            found.append(f"{name}: module {module}, program {program}, ONNX {exported}")
    return found


def gone(outcome: Outcome) -> int:
    """How many are."""
    return sum(reason is None for reason in outcome.values())


# ---------------------------------------------------------------- the page


def render(rows: list[Row]) -> str:
    """The table, one line per network."""
    header = ["network", "BatchNorms", "module", "program"]
    header += [f"{name}" for name in EXPORTERS]
    header += [f"rounding, {name}" for name in EXPORTERS]
    body = []
    for network in dict.fromkeys(row.network for row in rows):
        own = {row.exporter: row for row in rows if row.network == network}
        first = next(iter(own.values()))
        cells = [network, str(len(first.module)), str(gone(first.module)), str(gone(first.program))]
        cells += [_cell(own.get(exporter)) for exporter in EXPORTERS]
        cells += [f"{own[e].rounding:.2f}x" if e in own else "" for e in EXPORTERS]
        body.append(cells)
    return table(header, body)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    left = f", {row.steps_left} left in all" if row.steps_left else ""
    return f"{gone(row.exported)} of {row.batch_norms}{left}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description="Networks exported to ONNX, folded.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(NETWORKS))
    parser.add_argument("--exporter", nargs="+", choices=tuple(EXPORTERS), default=list(EXPORTERS))
    parser.add_argument("--output", type=Path, default=_PAGE)
    options = parser.parse_args(arguments)
    rows = []
    for network in options.only:
        for exporter in options.exporter:
            row = measure(network, exporter)
            print(network, exporter, _cell(row), f"{row.rounding:.2f}x", file=sys.stderr)
            rows.append(row)
    page = _HEAD.format(
        count=len(options.only), torch=torch.__version__, runtime=onnxruntime.__version__
    )
    page += "\n" + render(rows)
    print(page)
    options.output.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
