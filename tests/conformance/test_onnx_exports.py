"""The same network, the same decisions: as a module, as an exported program, as two ONNX files.

The full list of networks is in benchmarks/onnx_exports.py; here are some of each kind of trouble,
with few of their many like blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.onnx_exports import (
    EXPORTERS,
    Row,
    differences,
    gone,
    measure,
    module_path,
)
from benchmarks.randomize import randomize_statistics
from benchmarks.zoo import create
from tests.shallow import shallow

ROUNDING = 8.0
"""How many times the exporter's own float32 error the folded file may have."""

CASES = {
    ("timm:resnet18", "torchscript"): 14,
    ("timm:resnetv2_18", "torchscript"): 11,
    ("timm:densenet121", "torchscript"): 23,
    ("timm:levit_128s", "torchscript"): 28,
    ("timm:repvgg_a0", "dynamo"): 19,
    ("timm:mixnet_s", "torchscript"): 49,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("network", "exporter"), CASES)
def test_decisions_and_numbers(monkeypatch, network: str, exporter: str):
    def few(name: str, **options: Any) -> Any:
        return create(name, **options, **shallow(name))

    monkeypatch.setattr("benchmarks.onnx_exports.create", few)
    row = measure(network, exporter)
    assert row.batch_norms == CASES[network, exporter] == len(row.exported)
    assert differences(row) == []
    assert gone(row.exported) == row.batch_norms, row.exported
    assert row.rounding <= ROUNDING


class Functional(nn.Module):
    """ReLU as a function: a module has no room for bounds there, a graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.sigmoid_norm = nn.BatchNorm2d(4)
        self.input_norm = nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(torch.relu(self.norm(x)))
        return self.sigmoid_norm(torch.sigmoid(y)) + torch.sigmoid(self.input_norm(x)).mean()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_the_module_keeps_for_want_of_room_goes_in_the_file(monkeypatch, exporter):
    torch.manual_seed(0)
    model = Functional().eval()
    example = torch.randn(2, 3, 10, 10)
    randomize_statistics(model)
    monkeypatch.setattr("benchmarks.onnx_exports.create", lambda name, **_: (model, example))
    row = measure("Functional", exporter)
    assert row.module == {
        "input_norm": "nonlinear",
        "norm": "activation",
        "sigmoid_norm": "branches",
    }
    assert row.exported == {**row.module, "norm": None}
    assert row.exported == row.program
    assert differences(row) == []
    assert row.rounding <= ROUNDING


def test_differences_are_noticed():
    def row(module, program, exported):
        return Row("net", "dynamo", 1, module, program, exported, 0, 1.0)

    gone_, kept = {"bn": None}, {"bn": "padding"}
    assert differences(row(gone_, gone_, gone_)) == []
    assert differences(row(kept, kept, kept)) == []
    assert differences(row(gone_, gone_, kept)) != []
    assert differences(row(kept, kept, gone_)) != []  # the module had no excuse
    assert differences(row({"bn": "activation"}, gone_, gone_)) == []
    assert differences(row(gone_, gone_, {})) != []


def test_paths_of_modules_are_read_from_the_file():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    for export in EXPORTERS.values():
        exported = export(model.eval(), torch.randn(1, 3, 6, 6))
        norms = [node for node in exported.graph.node if node.op_type == "BatchNormalization"]
        assert [module_path(node) for node in norms] == ["0.1", "1"]
