"""Files that are not what they say: a clear answer, nothing half written, the input untouched.

Every case goes through the command, since that is where a person meets it, and through the call.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.cli import main
from bnfold.errors import BnfoldError, ModelUnreadableError, UsageError

UNREADABLE, USAGE = 3, 2


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of the model, beside others that it must not reach."""
    path = tmp_path / "model"
    path.mkdir()
    return path


def proto(channels: int = 64) -> onnx.ModelProto:
    """A convolution of 18 to 150 KB, a BatchNorm, a ReLU."""
    generator = np.random.default_rng(0)

    def tensor(name, *shape, low=-1.0):
        values = generator.uniform(low, 1.0, shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    tensors = [tensor("w", channels, 8, 3, 3), tensor("v", channels, low=0.3)]
    tensors += [tensor(name, channels) for name in ("g", "b", "m")]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 4, 4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(folder: Path, **entries: object) -> Path:
    """The model with its weight in model.data, and other entries for that place."""
    model = proto()
    weight = next(t for t in model.graph.initializer if t.name == "w")
    (folder / "model.data").write_bytes(weight.raw_data)
    place = {"location": "model.data", "offset": 0, "length": len(weight.raw_data), **entries}
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    return save(folder, model)


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif path.is_file():
            found[str(path)] = path.read_bytes()
        else:
            found[str(path)] = "folder"
    return found


def assert_refused(capsys, path: Path, *texts: str, code: int = UNREADABLE) -> str:
    """The exit code; one message on stderr, with the texts; nothing printed, nothing changed."""
    before = contents(path.parent)
    for extra in ([], ["--no-check"], ["--json"]):
        assert main(["fold", str(path), *extra]) == code
        out, message = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in message
        for text in (path.name, "Next:", *texts):
            assert text in message, message
        assert contents(path.parent) == before
    assert main(["inspect", str(path)]) == code
    capsys.readouterr()
    expected = {UNREADABLE: ModelUnreadableError, USAGE: UsageError}[code]
    with pytest.raises(expected):
        bnfold.fold(str(path))
    assert contents(path.parent) == before
    return message


# ---------------------------------------------------------------- not a model


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"hello, I am a text file\n" * 9])
def test_a_file_of_something_else(capsys, folder, content):
    path = folder / "model.onnx"
    path.write_bytes(content)
    assert_refused(capsys, path)


def test_a_file_of_noise(capsys, folder):
    path = folder / "model.onnx"
    path.write_bytes(np.random.default_rng(5).bytes(5000))
    assert_refused(capsys, path)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off(capsys, folder, part):
    path = save(folder, proto())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert_refused(capsys, path)


def test_another_message_than_a_model(capsys, folder):
    path = folder / "model.onnx"
    path.write_bytes(proto().graph.initializer[0].SerializeToString())
    assert_refused(capsys, path)


def test_a_model_without_a_graph(capsys, folder):
    model = proto()
    model.ClearField("graph")
    assert_refused(capsys, save(folder, model), "no graph")


def test_no_such_file(capsys, folder):
    assert_refused(capsys, folder / "model.onnx")


def test_a_folder(capsys, folder):
    (folder / "model.onnx").mkdir()
    assert_refused(capsys, folder / "model.onnx", "folder")


# ---------------------------------------------------------------- graphs that mean nothing


def test_a_cycle(capsys, folder):
    model = proto()
    model.graph.node[0].input[0] = "y"
    assert_refused(capsys, save(folder, model))


def test_a_cycle_beside_the_rest(capsys, folder):
    model = proto()
    model.graph.node.extend(
        [
            helper.make_node("Neg", ["p"], ["q"], name="one"),
            helper.make_node("Neg", ["q"], ["p"], name="two"),
        ]
    )
    assert_refused(capsys, save(folder, model))


def test_a_node_that_reads_itself(capsys, folder):
    model = proto()
    model.graph.node.append(helper.make_node("Add", ["x", "z"], ["z"], name="self"))
    assert_refused(capsys, save(folder, model))


def test_two_nodes_with_one_output(capsys, folder):
    model = proto()
    model.graph.node.append(helper.make_node("Neg", ["n"], ["y"], name="other"))
    assert_refused(capsys, save(folder, model), "'y'")


def test_a_node_that_writes_an_initializer(capsys, folder):
    model = proto()
    model.graph.node.append(helper.make_node("Neg", ["n"], ["w"], name="other"))
    assert_refused(capsys, save(folder, model), "'w'")


def test_a_node_that_writes_an_input(capsys, folder):
    model = proto()
    model.graph.node.append(helper.make_node("Neg", ["n"], ["x"], name="other"))
    assert_refused(capsys, save(folder, model), "'x'")


def test_two_initializers_of_one_name(capsys, folder):
    model = proto()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "w"))
    assert_refused(capsys, save(folder, model), "'w'")


def test_two_inputs_of_one_name(capsys, folder):
    model = proto()
    model.graph.input.append(model.graph.input[0])
    assert_refused(capsys, save(folder, model), "'x'")


def test_a_value_that_nothing_makes(capsys, folder):
    model = proto()
    model.graph.node[2].input[0] = "nowhere"
    assert_refused(capsys, save(folder, model), "'nowhere'")


def test_an_output_that_nothing_makes(capsys, folder):
    model = proto()
    model.graph.output[0].name = "nowhere"
    assert_refused(capsys, save(folder, model), "'nowhere'")


@pytest.mark.parametrize("name", ["w", "g", "v"])
def test_a_tensor_with_too_few_bytes(capsys, folder, name):
    model = proto()
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.raw_data = tensor.raw_data[:-4]
    assert_refused(capsys, save(folder, model), f"'{name}'")


@pytest.mark.parametrize("dims", [[-1], [64, -8, 3, 3], [1 << 62, 8]])
def test_a_tensor_with_an_impossible_shape(capsys, folder, dims):
    model = proto()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    assert_refused(capsys, save(folder, model), "'w'")


def test_nodes_may_have_equal_names(folder):
    """Names of nodes are for people: ONNX does not ask for them to differ."""
    model = proto()
    for node in model.graph.node:
        node.name = "node"
    path, report = bnfold.fold(str(save(folder, model)))
    assert report.removed == 1
    onnx.checker.check_model(path, full_check=True)


# ---------------------------------------------------------------- external data


def test_external_data_is_read_and_written(folder):
    """What the refusals below are measured against."""
    path, report = bnfold.fold(str(external(folder)))
    assert report.removed == 1
    onnx.checker.check_model(str(path), full_check=True)
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.data",
        "model.folded.onnx",
        "model.folded.onnx.data",
        "model.onnx",
    ]


def test_external_data_is_missing(capsys, folder):
    path = external(folder)
    (folder / "model.data").unlink()
    assert_refused(capsys, path, "'w'", "model.data")


def test_external_data_is_shorter_than_said(capsys, folder):
    path = external(folder)
    data = folder / "model.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert_refused(capsys, path, "'w'")


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 4},
        {"offset": -4},
        {"offset": 1 << 63},
        {"offset": "zero"},
        {"length": 8},
        {"length": -1},
        {"location": None},
        {"location": ""},
        {"location": "."},
    ],
    ids=str,
)
def test_external_data_is_not_where_it_is_said(capsys, folder, entries):
    assert_refused(capsys, external(folder, **entries), "'w'")


@pytest.mark.parametrize("place", ["../secret.data", "sub/../../secret.data", "./../secret.data"])
def test_external_data_outside_the_folder(capsys, folder, place):
    (folder / "sub").mkdir()
    size = 64 * 8 * 9 * 4
    (folder.parent / "secret.data").write_bytes(b"\0" * size)
    assert_refused(capsys, external(folder, location=place), "'w'", "folder")


def test_external_data_at_an_absolute_place(capsys, folder):
    path = external(folder, location=str(folder / "model.data"))
    assert_refused(capsys, path, "'w'")


def test_external_data_behind_a_link(capsys, folder):
    path = external(folder)
    secret = folder.parent / "secret.data"
    (folder / "model.data").rename(secret)
    (folder / "model.data").symlink_to(secret)
    assert_refused(capsys, path, "'w'")


def test_external_data_behind_a_linked_folder(capsys, folder):
    path = external(folder, location="sub/model.data")
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / "model.data").rename(outside / "model.data")
    (folder / "sub").symlink_to(outside)
    assert_refused(capsys, path, "'w'")


def test_external_data_in_a_pipe(capsys, folder):
    """A pipe would wait for ever."""
    path = external(folder)
    (folder / "model.data").unlink()
    os.mkfifo(folder / "model.data")
    before = path.read_bytes()
    assert main(["fold", str(path)]) == UNREADABLE
    assert "model.data" in capsys.readouterr().err
    assert path.read_bytes() == before


# ---------------------------------------------------------------- the output


def test_the_output_exists(capsys, folder):
    path = save(folder, proto())
    (folder / "model.folded.onnx").write_text("mine")
    assert main(["fold", str(path)]) == USAGE
    assert "model.folded.onnx" in capsys.readouterr().err
    assert (folder / "model.folded.onnx").read_text() == "mine"


def test_the_external_data_of_the_output_exists(capsys, folder):
    """It belongs to somebody, even if there is no model of that name."""
    path = external(folder)
    (folder / "model.folded.onnx.data").write_text("mine")
    assert main(["fold", str(path)]) == USAGE
    assert "model.folded.onnx.data" in capsys.readouterr().err
    assert (folder / "model.folded.onnx.data").read_text() == "mine"
    assert not (folder / "model.folded.onnx").exists()


@pytest.mark.parametrize("extra", [[], ["--force"]])
def test_the_output_is_the_model_itself(capsys, folder, extra):
    path = save(folder, proto())
    before = path.read_bytes()
    assert main(["fold", str(path), "-o", str(path), *extra]) == USAGE
    assert path.read_bytes() == before


@pytest.mark.parametrize("location", ["other.onnx.data", "other.onnx"])
def test_the_output_would_be_the_data_that_is_read(capsys, folder, location):
    """--force to a name that is the input's own data file, or whose data file is."""
    path = external(folder, location=location)
    (folder / "model.data").rename(folder / location)
    before = contents(folder)
    code = main(["fold", str(path), "-o", str(folder / "other.onnx"), "--force"])
    assert code == USAGE
    assert contents(folder) == before


_LIMITED = """
import resource, signal, sys
sys.dont_write_bytecode = True  # or what is imported first is left behind half written
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from bnfold.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize("is_external", [False, True])
def test_a_full_disk(folder, is_external):
    """No file may grow beyond a limit: a write fails half way, as on a full disk."""
    path = external(folder) if is_external else save(folder, proto())
    before = contents(folder)
    for limit in (0, 6000):
        script = _LIMITED.format(limit=limit, arguments=["fold", str(path), "--no-check"])
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == USAGE, done.stderr
        assert "could not be written" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert contents(folder) == before


def test_a_full_disk_keeps_what_was_to_be_overwritten(folder):
    path = external(folder)
    bnfold.fold(str(path))
    before = contents(folder)
    script = _LIMITED.format(limit=6000, arguments=["fold", str(path), "--no-check", "--force"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == USAGE
    assert contents(folder) == before


def test_a_model_in_memory_that_is_broken():
    model = proto()
    model.graph.node[2].input[0] = "nowhere"
    with pytest.raises(BnfoldError, match="nowhere"):
        bnfold.fold(model)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_never_make_it_stumble(capsys, folder, seed):
    """Any byte may be wrong: the answer is a model or a refusal, never a crash."""
    generator = np.random.default_rng(seed)
    whole = proto(channels=4).SerializeToString()
    # The weights are most of it; what stands around them is more interesting.
    weight = next(t for t in proto(channels=4).graph.initializer if t.name == "w").raw_data
    start = whole.index(weight)
    places = [*range(start), *range(start + len(weight), len(whole))]
    path = folder / "model.onnx"
    for _ in range(40):
        damaged = bytearray(whole)
        for place in generator.choice(places, generator.integers(1, 4)):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        code = main(["fold", str(path), "--no-check", "-o", str(folder / "out.onnx"), "--force"])
        assert code in (0, UNREADABLE), capsys.readouterr().err
