"""The options that edit an ONNX model before it is folded."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold.cli import main
from bnfold.frontends.onnx import edit_opset
from bnfold.frontends.onnx.edit_file import edit_file
from bnfold.frontends.onnx.edit_model import Edits
from bnfold.frontends.onnx.facts import facts
from tests.cli.test_streams import command
from tests.frontends.onnx.support import Sketch, assert_same, ops
from tests.frontends.onnx.test_edit import network

USAGE, UNREADABLE = 2, 3
SHAPE = "1x3x8x8"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "a.onnx")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *said: str, code: int = USAGE):
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == "" and all(text in err for text in said), err
    after = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fix-input", "1x3"], ["a.onnx: input 'x'", "1x3. Next: ", "batch x 3"]),
        (["--fix-input", "y:1x3x8x8"], ["a.onnx has no input 'y'", "inputs are: x"]),
        (["--fix-input", "x:1x3xhx8"], ["--fix-input x:1x3xhx8 is no shape", "image:1x3x224x224"]),
        (["--fix-input", "1x4x8x8"], ["a.onnx: edited so, it does not run", "--no-verify"]),
        (["--to", "nothing"], ["a.onnx has no tensor 'nothing'", "Next: name one of its tensors"]),
        (["--from", "conv_w"], ["a.onnx: 'conv_w' is a constant"]),
        (["--opset", "99"], ["a.onnx: onnx ", "99 was asked for. Next: choose"]),
    ],
)
def test_what_the_model_has_not(capsys, words, said) -> None:
    refused(capsys, ["fold", "a.onnx", *words], *said)


def test_no_way_back(capsys) -> None:
    refused(capsys, ["fold", "a.onnx", "--opset", "11"], "a.onnx: opset 17", code=UNREADABLE)


@pytest.mark.parametrize(
    "words", [["--fix-input", SHAPE], ["--from", "x"], ["--to", "y"], ["--opset", "18"]]
)
@pytest.mark.parametrize("name", ["net.prototxt", "nets:build"])
def test_other_kinds_of_models(capsys, words, name) -> None:
    Path("net.prototxt").write_text('layer { name: "x" type: "Input" top: "x" }')
    Path("net.caffemodel").write_bytes(b"\x0a\x03net\xa2\x06\x02\x0a\x00")
    refused(capsys, ["inspect", name, *words], words[0], f"{name} is none", "leave it out")


def test_a_wrong_conversion_is_found(capsys, monkeypatch) -> None:
    convert = edit_opset.version_converter.convert_version

    def wrong(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        made = convert(model, opset)
        next(node for node in made.graph.node if node.op_type == "Neg").op_type = "Abs"
        return made

    monkeypatch.setattr(edit_opset.version_converter, "convert_version", wrong)
    refused(
        capsys,
        ["fold", "a.onnx", "--opset", "18"],
        "a.onnx: converted by onnx, it does not compute the same",
        code=UNREADABLE,
    )
    assert main(["fold", "a.onnx", "--opset", "18", "--no-verify"]) == 0


@pytest.mark.parametrize("output", ["a.onnx", "split.bin"])
def test_what_was_read_is_not_replaced(capsys, output) -> None:
    s = Sketch("n", 16, 6, 6)
    s.conv(16, 64)
    s.bn(64)
    onnx.save(s.model(), "split.onnx", save_as_external_data=True, location="split.onnx.data")
    words = ["fold", "split.onnx", "--opset", "18", "--force"]
    refused(capsys, [*words, "-o", "split.onnx"], "split.onnx is the model itself")
    Path("b").mkdir()
    onnx.save(s.model(), "data.onnx", save_as_external_data=True, location="out.onnx.data")
    words = ["fold", "data.onnx", "--opset", "18", "--force"]
    refused(capsys, [*words, "-o", "out.onnx"], "external data of the model itself")


# -------------------------------------------------------------------- what goes


def test_all_at_once(capsys) -> None:
    words = ["--from", "conv_out", "--to", "second_out", "--opset", "18"]
    words += ["--fix-input", "conv_out:1x4x6x6"]
    assert main(["fold", "a.onnx", *words, "--clip", "always", "--report", "page.html"]) == 0
    out, err = capsys.readouterr()
    assert "edited first: cut from conv_out to second_out: 3 of 5 nodes stay" in out
    assert "edited first: input conv_out fixed at 1x4x6x6" in out
    assert "edited first: opset 17 became 18" in out and "equal: " in out
    made = onnx.load("a.folded.onnx")
    assert list(facts(made)) == [
        "opset 18; IR version 8",
        "input conv_out: float32 1x4x6x6",
        "output second_out: float32 1x5x4x4",
    ]
    page = Path("page.html").read_text()
    assert "opset 17 became 18" in page and "/tmp" not in page + out + err


@pytest.mark.parametrize("spelled", [SHAPE, "1,3,8,8", "x:1,3,8,8", f"x:{SHAPE}"])
def test_spellings_of_sizes(spelled) -> None:
    assert main(["fold", "a.onnx", "--fix-input", spelled, "-o", "b.onnx"]) == 0
    assert facts(onnx.load("b.onnx"))[1] == "input x: float32 1x3x8x8"
    assert_same(network(), onnx.load("b.onnx"), (1, 3, 8, 8))
    assert main(["fold", "a.onnx", "--input", spelled, "-o", "c.onnx"]) == 0
    assert facts(onnx.load("c.onnx"))[1].endswith("batch x 3 x height x width")


def test_the_document(capsys) -> None:
    assert main(["fold", "a.onnx", "--to", "relu_out", "--to", "bn_out", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["notes"][0] == "edited first: cut to relu_out, bn_out: 3 of 5 nodes stay"
    assert document["bytes"] == Path("a.onnx").stat().st_size
    assert document["ops"]["before"] == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}
    assert document["verify"]["equal"] is True


def test_inspect(capsys) -> None:
    assert main(["inspect", "a.onnx", "--to", "bn_out", "--fix-input", SHAPE]) == 0
    out, _ = capsys.readouterr()
    assert "output bn_out: float32 1x4x6x6" in out and "edited first: cut to bn_out" in out
    assert [path.name for path in Path().iterdir()] == ["a.onnx"]


def test_inside_of_a_network_no_image_is_assumed(tmp_path) -> None:
    """A tensor inside, with open sizes, is run as large as it is there."""
    with ExitStack() as stack:
        (tmp_path / "b").mkdir()
        edits = Edits(inputs=["conv_out"])
        made = edit_file(Path("a.onnx"), edits, tmp_path / "b", stack, lambda part: None)
        assert made.shapes == {"conv_out": (2, 4, 222, 222)}
    assert main(["fold", "a.onnx", "--from", "conv_out", "--clip", "always"]) == 0
    words = ["--from", "conv_out", "--input", "conv_out:1x4x6x6", "--clip", "always"]
    assert main(["fold", "a.onnx", *words, "-o", "b.onnx"]) == 0
    assert ops(onnx.load("b.onnx")) == ops(onnx.load("a.folded.onnx"))


def test_an_input_that_was_fixed_beside_the_model_where_it_was_open(capsys) -> None:
    assert main(["fold", "a.onnx", "--fix-input", SHAPE]) == 0
    assert main(["verify", "a.onnx", "a.folded.onnx"]) == 0
    assert "takes x as 1x3x8x8 alone: no other size was tried" in capsys.readouterr().out


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_many_models(capsys, jobs) -> None:
    onnx.save(network("n", 3, "h", "w"), "b.onnx")
    words = ["--jobs", jobs, "--fix-input", SHAPE, "--opset", "18", "--output-dir", "out"]
    assert main(["fold", "a.onnx", "b.onnx", *words]) == 0
    for name in ("a.onnx", "b.onnx"):
        made = onnx.load(Path("out") / name)
        assert facts(made)[:2] == ["opset 18; IR version 8", "input x: float32 1x3x8x8"]
    assert main(["fold", "a.onnx", "b.onnx", *words[2:4], "--to", "nothing"]) == USAGE
    assert capsys.readouterr().out.count("has no tensor 'nothing'") == 2


def test_streams() -> None:
    Path("page").mkdir()
    done = command("fold", "-", "--to", "bn_out", "--fix-input", SHAPE, "-o", "b.onnx")
    assert done.returncode == 0 and "cut to bn_out" in done.stdout, done.stderr
    assert facts(onnx.load("b.onnx"))[1:] == [
        "input x: float32 1x3x8x8",
        "output bn_out: float32 1x4x6x6",
    ]
    done = command("fold", "-", "--to", "nothing", "-o", "c.onnx")
    assert done.returncode == USAGE and "stdin has no tensor 'nothing'" in done.stderr


def test_external_data() -> None:
    s = Sketch("n", 16, "h", "w")
    s.conv(16, 64)
    s.bn(64)
    s.conv(64, 8, name="second")
    onnx.save(s.model(), "split.onnx", save_as_external_data=True, location="split.bin")
    words = ["--fix-input", "1x16x8x8", "--opset", "18"]
    assert main(["fold", "split.onnx", *words, "--no-merge", "-o", "out.onnx"]) == 0
    assert Path("out.onnx.data").exists()
    assert bnfold.verify("split.onnx", "out.onnx", {"x": (1, 16, 8, 8)}).equal
    assert main(["fold", "split.onnx", "--to", "bn_out", "-o", "cut.onnx"]) == 0
    whole, part = Path("out.onnx.data").stat().st_size, Path("cut.onnx.data").stat().st_size
    assert part < whole
