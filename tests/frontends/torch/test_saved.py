"""What is saved of a folded module, and whether it loads where bnfold is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold
from tests.frontends.torch.support import build, image, run

# The classes of the user, in a module that is there on both sides.
USER = """
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))

class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()
        self.act = nn.ReLU()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv1(self.relu(self.bn1(x)))
        return self.head(x + self.conv2(self.act(self.bn2(x))))

class Copied(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.bn(x)
        y += 1.0
        return self.left(x) + self.right(y)
"""

# Prints, per file, whether it loads and computes the same without bnfold.
LOADER = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["bnfold"] = None  # importing it raises ModuleNotFoundError
import torch

x, expected = torch.load("io.pt")
for name in sys.argv[1:]:
    try:
        if name.endswith(".pt2"):
            model = torch.export.load(name).module()
        elif name.endswith(".ts"):
            model = torch.jit.load(name)
        else:
            model = torch.load(name, weights_only=False)
    except ModuleNotFoundError as error:
        print(name, error.name.partition(".")[0])
    else:
        print(name, torch.allclose(model(x), expected[name.partition("-")[0]]))
"""

X = image(2, 3, 5, 5)
OURS = {
    ("Plain", "always"): False,
    ("Plain", "never"): False,
    ("PreActivation", "always"): True,
    ("PreActivation", "never"): False,
    ("Copied", "always"): True,
    ("Copied", "never"): True,
}
"""Per class and clip mode: whether the folded module has modules of bnfold in it."""


def has_ours(model: nn.Module) -> bool:
    return any(type(module).__module__.startswith("bnfold") for module in model.modules())


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_models.py").write_text(USER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_models", raising=False)
    return tmp_path


def test_what_loads_without_bnfold(user: Path) -> None:
    import user_models

    expected, told = {}, {}
    for (kind, clip), ours in OURS.items():
        model = build(getattr(user_models, kind)())
        folded, _ = bnfold.fold(model, X, clip=clip)
        assert has_ours(folded) is ours
        expected[kind] = run(model, X)[0]
        name = f"{kind}-{clip}"
        torch.save(folded, user / f"{name}.pt")
        told[f"{name}.pt"] = "bnfold" if ours else "True"
        torch.export.save(torch.export.export(folded, (X,)), user / f"{name}.pt2")
        torch.jit.save(torch.jit.script(folded), user / f"{name}.ts")
        told |= {f"{name}.pt2": "True", f"{name}.ts": "True"}
    torch.save((X, expected), user / "io.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *told],
        cwd=user,
        env={**os.environ, "PYTHONPATH": str(user)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(line.split(" ", 1) for line in done.stdout.splitlines()) == told


def test_loading_a_module_of_ours_imports_little(user: Path) -> None:
    """Where bnfold is installed, no more of it is needed than two classes."""
    import user_models

    folded, _ = bnfold.fold(build(user_models.PreActivation()), X, clip="always")
    torch.save(folded, user / "model.pt")
    code = (
        "import sys, torch; torch.load('model.pt', weights_only=False);"
        "print('onnx' in sys.modules, 'bnfold.frontends.torch.modules' in sys.modules)"
    )
    path = os.pathsep.join([str(user), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=user,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
