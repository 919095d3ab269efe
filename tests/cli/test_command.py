"""The command: what it prints, writes, refuses, and how it exits."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from bnfold import FoldReport
from bnfold.cli import main
from bnfold.frontends.torch import door
from tests.frontends.torch.support import build, image

FACTORIES = """
import torch
from torch import nn


def net():
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(4)
    norm.running_mean += torch.randn(4)
    norm.running_var *= torch.rand(4) + 0.5
    nn.init.normal_(norm.weight)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval()


def training():
    return net().train()


def raising():
    raise RuntimeError("no weights here")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.table = net(), nn.Embedding(2, 1)

    def forward(self, x, index):
        return self.net(x) + self.table(index)


def two():
    return Two().eval()


number = 3
"""


class Padded(nn.Module):
    """One BatchNorm that goes, and one that padding keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.norm(x)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path: Path, model: nn.Module) -> bytes:
    torch.export.save(torch.export.export(model, (image(1, 3, 8, 8),)), path)
    return path.read_bytes()


@pytest.fixture
def foldable(folder):
    """A file of which everything goes."""
    layers = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    save(folder / "net.pt2", build(nn.Sequential(*layers)))
    return folder / "net.pt2"


@pytest.fixture
def padded(folder):
    """A file of which something stays."""
    save(folder / "padded.pt2", build(Padded()))
    return folder / "padded.pt2"


@pytest.fixture
def factories(folder, monkeypatch):
    """A module that the command imports from the working directory."""
    (folder / "cli_factories.py").write_text(FACTORIES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("cli_factories", None)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


def refused(capsys, folder: Path, arguments: list[str], code: int, *texts: str) -> None:
    """The exit code, one line on stderr that holds the texts, nothing printed or left behind."""
    before = listing(folder)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    for text in texts:
        assert text in err
    assert "Traceback" not in err
    assert listing(folder) == before


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("absent.pt2", None, "no such file"),
        ("empty.pt2", b"", "an empty file"),
        ("text.pt2", b"hello", "not a .pt2 archive"),
        ("old.pt", b"garbage", "a pickle"),
        ("net.bin", b"\x80\x02.", "a pickle"),
    ],
)
def test_files_that_are_no_program(capsys, folder, name, content, text):
    if content is not None:
        (folder / name).write_bytes(content)
    refused(capsys, folder, ["fold", name, "-o", "o.pt2"], 3, name, text, "Next: ")


def test_a_folder(capsys, folder):
    (folder / "models.pt2").mkdir()
    refused(capsys, folder, ["inspect", "models.pt2"], 3, "models.pt2", "a folder")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_program_that_is_cut_off(capsys, folder, foldable, kept):
    content = foldable.read_bytes()
    foldable.write_bytes(content[: int(len(content) * kept)])
    refused(capsys, folder, ["fold", "net.pt2"], 3, "net.pt2", "Next: ")


def test_a_program_with_a_damaged_weight(capsys, folder, foldable):
    content = bytearray(foldable.read_bytes())
    with zipfile.ZipFile(foldable) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weight_0"))
    start = (
        info.header_offset
        + 30
        + int.from_bytes(content[info.header_offset + 26 : info.header_offset + 28], "little")
        + int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    )
    content[start] ^= 0xFF
    foldable.write_bytes(content)
    refused(capsys, folder, ["fold", "net.pt2"], 3, "net.pt2", "damaged")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["net.pt2", "-o", "net.onnx"], "does not end in .pt2"),
        (["net.pt2", "-o", "nowhere/o.pt2"], "no folder nowhere"),
        (["net.pt2", "-o", "net.pt2"], "is the model itself"),
        (["net.pt2", "--input", "1x3x8x8"], "--input and --eval are for"),
        (["cli_factories:net", "--input", "1x3x8x8"], "say where with -o"),
        (["cli_factories:net", "--input", "1,3x8,8", "-o", "o.pt2"], "no shape"),
        (["cli_factories:net", "--input", "1x3:float31", "-o", "o.pt2"], "no dtype float31"),
        (["cli_factories:net", "-o", "o.pt2"], "needs example inputs"),
        (["cli_factories:net", "--input", "1x5x8x8", "-o", "o.pt2"], "on the example inputs"),
        (["cli_factories:training", "--input", "1x3x8x8", "-o", "o.pt2"], "--eval"),
        (["cli_factories:absent", "--input", "1x3x8x8", "-o", "o.pt2"], "has no absent"),
        (["no_such_module:net", "--input", "1x3x8x8", "-o", "o.pt2"], "no module no_such_module"),
    ],
)
def test_usage(capsys, factories, foldable, arguments, text):
    refused(capsys, factories, ["fold", *arguments], 2, text, "Next: ")


@pytest.mark.parametrize(
    ("name", "text"), [("raising", "no weights here"), ("number", "is a builtins.int")]
)
def test_factories_that_build_no_module(capsys, factories, name, text):
    arguments = ["fold", f"cli_factories:{name}", "--input", "1x3x8x8", "-o", "o.pt2"]
    refused(capsys, factories, arguments, 3, text)


def test_a_folder_that_is_not_writable(capsys, folder, foldable):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (folder / "locked").mkdir(mode=0o500)
    refused(capsys, folder, ["fold", "net.pt2", "-o", "locked/o.pt2"], 2, "not writable")


def test_a_full_disk(capsys, folder, foldable, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, folder, ["fold", "net.pt2"], 2, "net.folded.pt2", "No space left on device")


def test_a_write_that_is_interrupted(capsys, folder, foldable, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", interrupted)
    refused(capsys, folder, ["fold", "net.pt2"], 130, "interrupted")


def test_a_fold_that_is_wrong_is_not_written(capsys, folder, foldable, monkeypatch):
    fold = door.fold

    def wrong(*arguments: Any, **options: Any) -> Any:
        folded = fold(*arguments, **options)
        next(iter(folded.model.state_dict.values())).data[2] *= 1.1
        return folded

    monkeypatch.setattr(door, "fold", wrong)
    refused(capsys, folder, ["fold", "net.pt2"], 70, "does not compute the same")


def test_an_error_we_did_not_foresee(capsys, folder, foldable, monkeypatch):
    def broken(*_: object, **__: object) -> FoldReport:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(door, "inspect", broken)
    refused(capsys, folder, ["inspect", "net.pt2"], 70, "bug in bnfold", "ZeroDivisionError")


def test_without_pytorch(folder):
    (folder / "net.pt2").write_bytes(b"PK")
    script = (
        "import sys; sys.modules['torch'] = None; from bnfold.cli import main;"
        " sys.exit(main(['inspect', 'net.pt2']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 4
    assert 'python -m pip install "bnfold[torch]"' in done.stderr
    assert done.stdout == ""


# -------------------------------------------------------------------- hostile files


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["model.pt", "model.pt2", "model.pth"])
def test_a_pickle_is_not_executed(capsys, folder, name):
    mark = folder / "executed"
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    refused(capsys, folder, ["inspect", name], 3, "a pickle")
    torch.save(Payload(mark), folder / name)
    refused(capsys, folder, ["inspect", name], 3, "a pickle")
    assert not mark.exists()


def rewritten(path: Path, change: dict[str, Any]) -> None:
    """Write the archive anew; `change` gives the content of members by the end of their names."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, content in members.items():
        for ending, edit in change.items():
            if name.endswith(ending):
                members[name] = edit(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("member", ["sample_inputs/model.pt", "weights/weight_0"])
def test_a_pickle_inside_a_program_is_not_executed(capsys, folder, foldable, member):
    mark, pickled = folder / "executed", folder / "payload"
    torch.save(Payload(mark), pickled)
    payload = pickled.read_bytes()
    config = {
        "weights_config.json": lambda content: content.replace(
            b'"use_pickle": false', b'"use_pickle": true'
        )
    }
    rewritten(foldable, {member: lambda _: payload, **config})
    main(["inspect", "net.pt2"])  # refused, or read without the member; never executed
    capsys.readouterr()
    assert not mark.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"torch.ops.aten.relu.default", b"torch.os.system"),
        (b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default"),
        (b"torch.ops.aten.relu.default", b"builtins.exec"),
    ],
)
def test_an_operator_that_does_more_than_compute(capsys, folder, foldable, old, new):
    hits = []

    def replace(content: bytes) -> bytes:
        hits.append(content.count(old))
        return content.replace(old, new)

    rewritten(foldable, {"models/model.json": replace})
    assert sum(hits) > 0
    refused(capsys, folder, ["inspect", "net.pt2"], 3, "could run code from the file")


# -------------------------------------------------------------------- answered


def outputs(path: Path) -> Tensor:
    result: Tensor = torch.export.load(path).module()(image(1, 3, 8, 8, seed=9))
    return result


def operators(path: Path) -> str:
    return str([str(node.target) for node in torch.export.load(path).graph.nodes])


def test_fold_writes_beside_the_input_and_leaves_it_alone(capsys, folder, foldable):
    before = foldable.read_bytes()
    assert main(["fold", "net.pt2"]) == 0
    out, err = capsys.readouterr()
    assert "1 of 1 batch_norm removed" in out
    assert "largest difference" in out
    assert "written: net.folded.pt2" in out
    assert err == ""
    assert "\x1b" not in out
    assert foldable.read_bytes() == before
    assert listing(folder) == {"net.pt2", "net.folded.pt2"}
    assert "batch_norm" in operators(foldable)
    assert "batch_norm" not in operators(folder / "net.folded.pt2")
    torch.testing.assert_close(outputs(folder / "net.folded.pt2"), outputs(foldable))


def test_force_overwrites(capsys, folder, foldable):
    (folder / "o.pt2").write_bytes(b"old")
    refused(capsys, folder, ["fold", "net.pt2", "-o", "o.pt2"], 2, "o.pt2 exists")
    assert (folder / "o.pt2").read_bytes() == b"old"
    assert main(["fold", "net.pt2", "-o", "o.pt2", "--force"]) == 0
    torch.testing.assert_close(outputs(folder / "o.pt2"), outputs(foldable))


def test_dry_run_and_inspect_write_nothing(capsys, folder, foldable):
    assert main(["fold", "net.pt2", "--dry-run"]) == 0
    assert "nothing written" in capsys.readouterr().out
    assert main(["inspect", "net.pt2"]) == 0
    assert "1 of 1 batch_norm would be removed" in capsys.readouterr().out
    assert listing(folder) == {"net.pt2"}


@pytest.mark.parametrize("option", ["--no-verify", "--no-check"])
def test_no_verify_says_that_nothing_was_verified(capsys, foldable, option):
    assert main(["fold", "net.pt2", option]) == 0
    assert "nothing was verified (--no-verify)" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fold", "inspect"])
def test_strict(capsys, folder, foldable, padded, command):
    before = listing(folder)
    assert main([command, "padded.pt2", "--strict"]) == 1
    assert "padding" in capsys.readouterr().out
    assert listing(folder) == before
    assert main([command, "net.pt2", "--strict"]) == 0
    assert main([command, "padded.pt2"]) == 0


def schema() -> dict[str, Any]:
    text = files("bnfold").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_json(capsys, padded):
    assert main(["inspect", "padded.pt2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema())
    assert (document["total"], document["removed"]) == (2, 1)
    assert main(["fold", "padded.pt2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema())
    assert document["output"] == "padded.folded.pt2"
    assert document["difference"]["relative"] <= 1e-5
    assert document["verify"]["equal"]
    size = Path("padded.folded.pt2").stat().st_size
    assert document["files"] == [{"path": "padded.folded.pt2", "bytes": size}]
    assert document["bytes"] == Path("padded.pt2").stat().st_size
    before, after = document["ops"]["before"], document["ops"]["after"]
    assert sum(before.values()) - sum(after.values()) == 1


def test_factories(capsys, factories):
    arguments = ["fold", "cli_factories:net", "--input", "1x3x8x8", "-o", "o.pt2"]
    assert main(arguments) == 0
    assert "batch_norm" not in operators(factories / "o.pt2")
    arguments = ["fold", "cli_factories:training", "--eval", "--input", "1x3x8x8", "-o", "e.pt2"]
    assert main(arguments) == 0
    inputs = ["--input", "1x3x8x8", "--input", "6:int64"]
    assert main(["fold", "cli_factories:two", *inputs, "-o", "t.pt2"]) == 0
    assert "largest difference" in capsys.readouterr().out


# -------------------------------------------------------------------- starting


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnfold", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_loads_no_framework():
    script = (
        "import sys; from bnfold.cli import main; code = main(['--help']);"
        " heavy = [m for m in ('torch', 'onnx', 'numpy', 'rich') if m in sys.modules];"
        " print(heavy, file=sys.stderr);"
        " sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "fold" in done.stdout and "inspect" in done.stdout


def test_version_and_no_command():
    from bnfold import __version__

    assert run("--version").stdout.strip() == f"bnfold {__version__}"
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "COMMAND" in done.stderr
