"""The call: what it refuses, what it measures. Numbers of a real clock decide nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold import UsageError
from bnfold.bench.run import run
from bnfold.bench.settings import Setting, Wishes
from bnfold.bench.timing import Budget
from bnfold.frontends.torch import runtimes
from bnfold.frontends.torch.runtimes import TorchSubject


def small() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    net[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    return net.eval()


IMAGE = torch.rand(2, 3, 8, 8)


def exported(path: Path, *, open_batch: bool = True) -> Path:
    node = onnx.helper.make_node
    info = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(torch.rand(4, 3, 1, 1).numpy(), "w")
    norm = [onnx.numpy_helper.from_array(torch.rand(4).numpy() + 1, name) for name in "gbmv"]
    graph = onnx.helper.make_graph(
        [node("Conv", ["x", "w"], ["y"]), node("BatchNormalization", ["y", *"gbmv"], ["z"])],
        "net",
        [info("x", onnx.TensorProto.FLOAT, ["n" if open_batch else 2, 3, "h", 4])],
        [info("z", onnx.TensorProto.FLOAT, None)],
        [weight, *norm],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"against": ["tvm"]}, "is not known"),
        ({"runtimes": ["onnxruntime"]}, "no runtime 'onnxruntime'"),
        ({"runtimes": ["cuda graph"]}, "needs a CUDA device"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"dtype": "float8"}, "no dtype 'float8'"),
        ({"layout": "diagonal"}, "no layout 'diagonal'"),
        ({"batch": 0}, "no list of counts"),
        ({"threads": ()}, "no list of counts"),
        ({"rounds": 0}, "nothing to measure"),
        ({"seconds": 0.0}, "nothing to measure"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        bnfold.bench(small(), small(), IMAGE, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    with pytest.raises(UsageError, match="sees no CUDA device"):
        bnfold.bench(small(), small(), IMAGE, device="cuda")


def test_caffe_has_no_runtime_here() -> None:
    with pytest.raises(UsageError, match=r"caffe time -model"):
        bnfold.bench("deploy.prototxt")


def test_two_kinds_are_not_compared(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="two models of one kind"):
        bnfold.bench(small(), path, IMAGE)
    with pytest.raises(UsageError, match="two models of one kind"):
        bnfold.bench(path, "deploy.prototxt")


def test_training_mode_and_missing_inputs() -> None:
    with pytest.raises(bnfold.TrainingModeError):
        bnfold.bench(small().train(), small(), IMAGE)
    with pytest.raises(bnfold.ExampleInputError):
        bnfold.bench(small(), small())


def test_a_model_that_cannot_be_run_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folded model cannot be run in eager .*batch 2"):
        bnfold.bench(small(), nn.Linear(5, 5).eval(), IMAGE, rounds=1)


def test_another_that_cannot_be_run_is_a_note() -> None:
    others = {"mine": nn.Linear(5, 5).eval()}
    result = bnfold.bench(small(), None, IMAGE, rounds=1, others=others)
    assert {row.variant for row in result.rows} == {"original", "folded"}
    assert any(note.startswith("mine cannot be run in eager") for note in result.notes)


@pytest.mark.parametrize(
    ("options", "inputs", "problem"),
    [
        ({}, None, "axis 2 of the input 'x' is open"),
        ({}, {"y": (1,)}, "no input 'y'"),
        ({}, {"x": (1, 3)}, "has 4 axes, not 2"),
        ({"dtype": "float16"}, None, "are in the file"),
        ({"layout": "channels_last"}, None, "are in the file"),
        ({"runtimes": ["eager"]}, None, "no runtime 'eager'"),
        ({"device": "tpu"}, None, "no device 'tpu'"),
        ({"device": "cuda"}, None, "has no CUDA here"),
    ],
)
def test_onnx_refusals(options: dict[str, Any], inputs: Any, problem: str, tmp_path: Path) -> None:
    path = exported(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=problem):
        bnfold.bench(path, path, inputs, **options)


def test_a_fixed_batch_stays_what_it_is(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.onnx", open_batch=False)
    with pytest.raises(UsageError, match="fixed batch of 2, not 3"):
        bnfold.bench(path, path, {"x": (2, 3, 4, 4)}, batch=3)


# -------------------------------------------------------------------- what is measured


def test_every_setting_and_variant_has_its_row_and_nothing_is_touched() -> None:
    net = small()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    threads = torch.get_num_threads()
    result = bnfold.bench(
        net,
        inputs=IMAGE,
        against=["torch.fx"],
        dtype=("float32", "bfloat16"),
        layout=("contiguous", "channels_last"),
        batch=(1, 3),
        threads=(1, 2),
        rounds=2,
    )
    assert len(result.rows) == 3 * 2**4
    assert {row.setting for row in result.rows} == {
        ("eager", "cpu", dtype, layout, batch, count)
        for dtype in ("float32", "bfloat16")
        for layout in ("contiguous", "channels_last")
        for batch in (1, 3)
        for count in (1, 2)
    }
    for at in range(0, len(result.rows), 3):
        assert [row.variant for row in result.rows[at : at + 3]] == [
            "original",
            "folded",
            "torch.fx",
        ]
    assert all(row.calls == 2 and row.median > 0 for row in result.rows)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_models_see_the_setting() -> None:
    seen: set[tuple[Any, ...]] = set()

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = x.is_contiguous(memory_format=torch.channels_last)
            seen.add((x.dtype, self.conv.weight.dtype, last, len(x), torch.get_num_threads()))
            assert torch.is_inference_mode_enabled()
            return self.conv(x)  # type: ignore[no-any-return]

    spy = Spy().eval()
    bnfold.bench(
        spy, spy, IMAGE, dtype="bfloat16", layout="channels_last", batch=5, threads=1, rounds=1
    )
    assert seen == {(torch.bfloat16, torch.bfloat16, True, 5, 1)}


def test_programs_bring_their_inputs() -> None:
    program = torch.export.export(small(), (IMAGE,))
    result = bnfold.bench(program, rounds=1)
    assert [(row.variant, row.batch) for row in result.rows] == [("original", 2), ("folded", 2)]


def test_onnx_in_both_runtimes(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.onnx")
    result = bnfold.bench(
        path,
        None,
        {"x": (1, 3, 5, 4)},
        runtimes=["onnxruntime", "onnxruntime optimised"],
        batch=(1, 4),
        threads=1,
        rounds=2,
    )
    assert [(row.runtime, row.batch) for row in result.rows[::2]] == [
        (runtime, batch) for batch in (1, 4) for runtime in ("onnxruntime", "onnxruntime optimised")
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx"]
    assert "onnxruntime" in result.versions


class FakeSubject:
    """A subject whose times are known."""

    runtimes = ("fast", "slow")
    variants = ("original", "folded", "broken")
    settings = Wishes(threads=(1, 4)).settings(
        dtype="float32", layout="contiguous", batch=1, threads=9
    )

    def __init__(self) -> None:
        self.entered: list[int] = []

    @contextmanager
    def enter(self, setting: Setting) -> Iterator[None]:
        self.entered.append(setting.threads)
        yield

    def timed(self, variant: str, runtime: str, setting: Setting) -> Callable[[], float]:
        if variant == "broken":
            raise RuntimeError("no such op\nand more")
        base = {"fast": 1.0, "slow": 2.0}[runtime] / setting.threads
        return lambda: base * {"original": 1.0, "folded": 0.75}[variant]

    def describe(self) -> tuple[dict[str, str], dict[str, str]]:
        return {"gpu": "none"}, {"fake": "1"}


def test_rows_say_what_was_measured() -> None:
    subject, parts = FakeSubject(), []
    result = run(subject, Budget(rounds=5), parts.append)
    assert subject.entered == [1, 4]
    assert parts == [0.25, 0.5, 0.75, 1.0]
    found = [(r.variant, r.runtime, r.threads, r.median, r.ratio) for r in result.rows]
    assert found[:4] == [
        ("original", "fast", 1, 1.0, 1.0),
        ("folded", "fast", 1, 0.75, 0.75),
        ("original", "slow", 1, 2.0, 1.0),
        ("folded", "slow", 1, 1.5, 0.75),
    ]
    assert found[5] == ("folded", "fast", 4, 0.1875, 0.75)
    assert "broken cannot be run in fast: RuntimeError: no such op" in result.notes
    assert result.machine["gpu"] == "none"
    assert result.versions["fake"] == "1"


# -------------------------------------------------------------------- CUDA, on a stand-in


class FakeCuda:
    """What `torch.cuda` is asked, in order; its clock goes on by 2 ms with each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log, clock = self.log, [0.0]

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = clock[0]
                log.append("record")

            def synchronize(self) -> None:
                log.append("wait")

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Stream:
            def wait_stream(self, other: object) -> None:
                log.append("wait_stream")

        @contextmanager
        def within(what: str) -> Iterator[None]:
            log.append(f"{what} in")
            yield
            log.append(f"{what} out")

        class Graph:
            def replay(self) -> None:
                log.append("replay")
                clock[0] += 2.0

        def call() -> None:
            log.append("call")
            clock[0] += 2.0

        self.call = call
        fakes = {
            "Event": Event,
            "Stream": Stream,
            "CUDAGraph": Graph,
            "synchronize": lambda: log.append("synchronize"),
            "current_stream": Stream,
            "stream": lambda stream: within("stream"),
            "graph": lambda graph: within("graph"),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)


def test_events_around_a_call_on_an_idle_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert runtimes.on_events(cuda.call)() == 0.002
    assert cuda.log == ["synchronize", "record", "call", "record", "wait"]


def test_a_graph_is_captured_once_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    replay = runtimes.captured(cuda.call)
    assert cuda.log == [
        *("wait_stream", "stream in", "call", "call", "call", "stream out", "wait_stream"),
        *("graph in", "call", "graph out"),
    ]
    cuda.log.clear()
    assert runtimes.on_events(replay)() == 0.002
    assert "call" not in cuda.log


@pytest.mark.parametrize("runtime", ["eager", "cuda graph"])
def test_a_cuda_setting_is_timed_by_events(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtimes, "_copy", lambda model, setting, wishes: model)
    monkeypatch.setattr(runtimes, "_placed", lambda inputs, setting, wishes: inputs)
    subject = TorchSubject(
        {"original": small()}, IMAGE, runtimes=(runtime,), wishes=Wishes(device="cuda")
    )
    timed = subject.timed("original", runtime, subject.settings[0])
    cuda.log.clear()
    timed()
    assert cuda.log == [
        "synchronize",
        "record",
        *(["replay"] if runtime == "cuda graph" else []),
        "record",
        "wait",
    ]
