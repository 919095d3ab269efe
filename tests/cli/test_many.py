"""Several models at once, folders, streams: one line each, one status, one document."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest

from bnfold.cli import main
from tests.frontends.onnx.support import Sketch


def write(path: Path, channels: int = 4) -> Path:
    s = Sketch(2, 3, 6, 6)
    s.conv(3, channels, name="conv")
    s.bn(channels, name="bn")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(s.model().SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("a.onnx"))
    write(Path("b.onnx"), channels=6)
    return tmp_path


def operators(path: str | Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


# -------------------------------------------------------------------- what is refused


def test_one_output_for_two_models(folder, capsys):
    assert main(["fold", "a.onnx", "b.onnx", "-o", "c.onnx"]) == 2
    assert "--output-dir" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "b.onnx"]


def test_two_models_that_would_become_one_file(folder, capsys):
    write(Path("x/a.onnx"))
    assert main(["fold", "a.onnx", "x/a.onnx", "--output-dir", "out"]) == 2
    assert "would both become" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-", "a.onnx"], "stdin holds one model"),
        (["a.onnx", "b.onnx", "--report", "page.html"], "a page about one model"),
        (["a.onnx", "-o", "b.onnx", "--output-dir", "out"], "leave one out"),
        (["a.onnx", "--jobs", "0"], "no number of processes"),
        (["a.onnx", "-o", "-", "--json"], "--json has no place"),
        (["a.onnx", "a.onnx", "--output-dir", "out"], "a.onnx is named twice. Next: leave one out"),
        (["a.onnx", "--output-dir", "b.onnx"], "b.onnx can be no folder: File exists"),
        (["a.onnx", "--output-dir", "b.onnx/out"], "out can be no folder: Not a directory"),
        (["a.onnx", "--output-dir", "n" * 300], "can be no folder: File name too long"),
        (["a.onnx", "--output-dir", "a\0b"], "can be no folder: embedded null"),
    ],
)
def test_usage(folder, capsys, words, text):
    assert main(["fold", *words]) == 2
    assert text in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "b.onnx"]


def test_weights_behind_an_onnx_model_are_no_weights(folder, capsys):
    Path("w.caffemodel").write_bytes(b"\x0a\x03net\xa2\x06\x02\x0a\x00")
    assert main(["fold", "a.onnx", "w.caffemodel"]) == 2
    out, _ = capsys.readouterr()
    assert "w.caffemodel  failed: w.caffemodel holds weights only" in out


# -------------------------------------------------------------------- several models


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failure_does_not_stop_the_others(folder, capsys, jobs):
    Path("bad.onnx").write_bytes(b"\x08\x08garbage")
    code = main(["fold", "a.onnx", "bad.onnx", "b.onnx", "--jobs", jobs])
    out, _ = capsys.readouterr()
    assert code == 3
    assert re.search(r"^a.onnx .* 1 of 1 removed, equal, .* a.folded.onnx$", out, re.M)
    assert re.search(r"^bad.onnx +failed: not an ONNX model", out, re.M)
    assert re.search(r"^b.onnx .* b.folded.onnx$", out, re.M)
    assert out.endswith("3 models: 2 folded, 1 not\n")
    assert operators("a.folded.onnx") == operators("b.folded.onnx") == {"Conv"}


def test_quiet_prints_failures_only(folder, capsys):
    assert main(["fold", "a.onnx", "b.onnx", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["fold", "a.onnx", "b.onnx", "absent.onnx", "-q", "--force"]) == 3
    out, _ = capsys.readouterr()
    assert out.startswith("absent.onnx  failed: ") and out.count("\n") == 1
    assert main(["fold", "b.onnx", "-q", "--force"]) == 0
    assert capsys.readouterr() == ("", "")


def test_one_document(folder, capsys):
    Path("bad.onnx").write_bytes(b"")
    assert main(["fold", "a.onnx", "bad.onnx", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    first, second = document["models"]
    assert (first["source"], first["exit_status"], first["error"]) == ("a.onnx", 0, None)
    assert first["fold"]["removed"] == 1 and first["fold"]["output"] == "a.folded.onnx"
    assert second["fold"] is None and "empty file" in second["error"]
    assert document["exit_status"] == 3


def test_strict_is_the_status_of_all(folder, capsys):
    s = Sketch(2, 3, 6, 6)
    s.node("Sigmoid")
    s.bn(3, name="stays")
    s.node("Sigmoid")
    Path("kept.onnx").write_bytes(s.model().SerializeToString())
    assert main(["fold", "a.onnx", "kept.onnx", "--strict"]) == 1
    assert Path("a.folded.onnx").exists() and not Path("kept.folded.onnx").exists()
    assert "nothing written (--strict)" in capsys.readouterr().out


# -------------------------------------------------------------------- folders


def test_a_folder_keeps_its_layout(folder, capsys):
    write(Path("models/one.onnx"))
    write(Path("models/deep/two.onnx"))
    write(Path("models/old.folded.onnx"))
    Path("models/readme.txt").write_text("no model")
    assert main(["fold", "models", "--output-dir", "out"]) == 0
    written = sorted(str(path) for path in Path("out").rglob("*.onnx"))
    assert written == ["out/deep/two.onnx", "out/one.onnx"]
    assert all(operators(path) == {"Conv"} for path in written)


def test_one_model_in_output_dir(folder, capsys):
    assert main(["fold", "a.onnx", "--output-dir", "new/place"]) == 0
    assert operators("new/place/a.onnx") == {"Conv"}


def test_a_folder_with_one_model_keeps_its_layout(folder, capsys):
    write(Path("models/deep/two.onnx"))
    assert main(["fold", "models", "--output-dir", "out"]) == 0
    assert operators("out/deep/two.onnx") == {"Conv"}


def test_what_is_there_already_is_named_with_the_option(folder, capsys):
    write(Path("out/a.onnx"))
    assert main(["fold", "a.onnx", "--output-dir", "out"]) == 2
    assert "choose another with --output-dir, or add --force" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["n" * 300 + ".onnx", "a/" * 3000 + "x.onnx", "a\0b.onnx", ""])
@pytest.mark.parametrize("command", ["fold", "inspect", "verify", "bench"])
def test_names_that_no_file_can_have(folder, capsys, command, name):
    words = [name, name] if command == "verify" else [name]
    assert main([command, *words]) == 3
    said = capsys.readouterr().err
    assert ("an empty name" if not name else "no such file") in said
    assert len(said) < 400
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "b.onnx"]


def test_data_of_a_name_that_no_file_can_have(folder, capsys):
    assert main(["verify", "a.onnx", "b.onnx", "--data", "n" * 300 + ".npz"]) == 3
    assert "no such file" in capsys.readouterr().err


def test_an_output_dir_that_is_the_models_own(folder, capsys):
    before = Path("a.onnx").read_bytes()
    assert main(["fold", "a.onnx", "b.onnx", "--output-dir", ".", "--force"]) == 2
    assert "is the model itself" in capsys.readouterr().out
    assert Path("a.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("number", "is_group"),
    [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)],
)
def test_processes_end_with_the_command(folder, number, is_group):
    """On Ctrl-C a terminal tells them all; a signal for the command alone is told to them."""
    s = Sketch(1, 3, 1024, 1024)
    s.conv(3, 64, name="first", pads=[1, 1, 1, 1])
    for at in range(24):
        s.conv(64, 64, name=f"c{at}", pads=[1, 1, 1, 1])
        s.bn(64, name=f"bn{at}")
    Path("heavy.onnx").write_bytes(s.model().SerializeToString())
    words = [sys.executable, "-m", "bnfold", "fold", "a.onnx", "heavy.onnx", "--jobs", "2"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("a.onnx")  # they work
    if is_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (128 + number, "", "bnfold: interrupted\n")
    assert not Path("heavy.folded.onnx").exists()


# -------------------------------------------------------------------- streams


def command(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bnfold", *words], input=stdin, capture_output=True
    )


def test_from_stdin_to_stdout(folder):
    done = command("fold", "-", stdin=Path("a.onnx").read_bytes())
    assert done.returncode == 0
    folded = onnx.load_model_from_string(done.stdout)
    assert {node.op_type for node in folded.graph.node} == {"Conv"}
    assert b"1 of 1 BatchNormalization removed; equal" in done.stderr
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    sessions = [
        onnxruntime.InferenceSession(content) for content in ("a.onnx", folded.SerializeToString())
    ]
    feeds = [dict(zip([i.name for i in s.get_inputs()], x.values(), strict=True)) for s in sessions]
    before, after = (s.run(None, f)[0] for s, f in zip(sessions, feeds, strict=True))
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def test_from_a_file_to_stdout_and_back(folder):
    done = command("fold", "a.onnx", "-o", "-", "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    assert command("fold", "-", "-o", "c.onnx", stdin=done.stdout).returncode == 0
    assert operators("c.onnx") == {"Conv"}


def test_a_stream_that_is_no_model(folder):
    done = command("fold", "-", stdin=b"\x1c\0\0\0TFL3")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"TensorFlow Lite" in done.stderr


@pytest.mark.parametrize("content", [b"", b"text", "a.onnx"])
def test_what_is_wrong_with_a_stream_names_no_file_of_ours(folder, content):
    content = content if isinstance(content, bytes) else Path(content).read_bytes()[:100]
    done = command("fold", "-", stdin=content)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith((b"bnfold: error: stdin: ", b"bnfold: error: stdin is "))
    assert b"/stdin" not in done.stderr


@pytest.mark.parametrize(
    ("redirection", "text"),
    [
        ("<&-", "stdin is closed"),
        ("<a.onnx >&-", "stdout is closed"),
        ("<a.onnx >/dev/full", "stdout did not take the whole model"),
        ("<a.onnx | true; exit ${PIPESTATUS[0]}", "stdout did not take the whole model"),
    ],
)
def test_a_stream_that_is_not_there(folder, redirection, text):
    words = f'"{sys.executable}" -m bnfold fold - {redirection}'
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert done.returncode == 2
    assert text in done.stderr
    assert "bug in bnfold" not in done.stderr and "Traceback" not in done.stderr


# -------------------------------------------------------------------- inspect and terminals


def test_two_models_side_by_side(folder, capsys):
    write(Path("a.folded.onnx"))
    assert main(["inspect", "a.onnx", "b.onnx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a.onnx", "b.onnx"]
    assert ["would", "go", "1", "1"] in [line.split() for line in lines]
    assert ["BatchNormalization", "1", "1"] in [line.split() for line in lines]
    assert main(["inspect", "a.onnx", "b.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [model["source"] for model in document["models"]] == ["a.onnx", "b.onnx"]


def on_terminal(columns: int, *words: str, status: int = 0) -> str:
    """What the command writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    terminal = {"COLUMNS": str(columns), "LINES": "24", "NO_COLOR": "1"}
    chunks: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # nobody writes any more
            while chunk := os.read(master, 65536):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with (
        os.fdopen(slave, "w", encoding="utf-8") as screen,
        redirect_stdout(screen),
        redirect_stderr(screen),
        patch.dict(os.environ, terminal),
    ):
        assert main(words) == status
    reader.join()
    os.close(master)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("columns", [80, 60, 40])
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("fold", "nosuch"), 3),
        (("fold", "a.onnxx"), 3),
        (("fold", "a.onnx", "-o", "no/such/folder/a.onnx"), 2),
        (("fold", "a.onnx", "-o", "a.txt"), 2),
        (("bench", "a.onnx", "--fx"), 2),
    ],
)
def test_an_error_is_broken_between_words(folder, columns, words, status):
    lines = on_terminal(columns, *words, status=status).replace("\x1b[K", "").splitlines()
    assert all(len(line.rpartition("\r")[2]) <= columns for line in lines)
    assert " ".join(" ".join(lines).split()).endswith((".", "?"))
    assert len(lines) == 1 or all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize("columns", [80, 60])
def test_a_line_that_says_why_it_failed_fits(folder, columns):
    Path("bad.onnx").write_bytes(b"\x08\x08garbage")
    found = on_terminal(columns, "fold", "a.onnx", "bad.onnx", status=3)
    lines = [line.rpartition("\x1b[K")[2] for line in found.replace("\r", "").splitlines()]
    assert all(len(line) <= columns for line in lines)
    assert any(line.startswith("bad.onnx  failed: not an ONNX model") for line in lines)


@pytest.mark.parametrize("columns", [80, 60, 40])
@pytest.mark.parametrize("table", [False, True])
def test_every_line_fits(folder, columns, table):
    s = Sketch(2, 3, 6, 6)
    for block in range(12):
        s.node("Sigmoid")
        s.bn(3, name=f"/features/denseblock{block}/denselayer{block}/norm1/BatchNormalization")
    s.node("Sigmoid")
    Path("long.onnx").write_bytes(s.model().SerializeToString())
    text = on_terminal(columns, "inspect", "long.onnx", *(["--table"] if table else []))
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if "\x1b[K" not in line]
    assert max(map(len, lines)) <= columns
    assert all("..." in line for line in lines if "denselayer" in line and columns < 60)
    assert any("more: --table" in line for line in lines) == (not table)


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_every_line_of_a_fold_fits(folder, columns):
    """The verdict of each of many models, too, is not cut."""
    s = Sketch(2, 3, 6, 6)
    for at in range(12):
        s.bn(3, name=f"bn{at}")
    s.node("Relu")
    s.conv(3, 4, name="conv")
    s.node("GlobalAveragePool")
    Path("long.onnx").write_bytes(s.model().SerializeToString())
    both = ("a.onnx", "long.onnx", "--output-dir", "a/rather/long/name", "--jobs", "1")
    many = on_terminal(columns, "fold", *both)
    for text in (many, on_terminal(columns, "fold", "long.onnx")):
        lines = [line.rpartition("\x1b[K")[2] for line in text.replace("\r\n", "\n").split("\n")]
        assert max(map(len, lines)) <= columns
        assert any("equal" in line for line in lines)
