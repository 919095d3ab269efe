"""What ends a run early, other than SIGKILL: it cleans up, and says so by its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnfold.cli import main
from tests.hard_stops import stepping, victims
from tests.hard_stops.victims import State, Victim

USAGE, UNREADABLE = 2, 3
WIDTH = 16


@pytest.fixture(params=["caffe", "onnx-data"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Victim:
    folder = tmp_path / "folder"
    folder.mkdir()
    made = victims.make(request.param, folder, width=WIDTH)
    assert main(made.arguments()) == 0
    made.learn()
    made.reset(is_old_there=True)
    return made


def command(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bnfold", *arguments],
        text=True,
        env=stepping.environment(),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


# -------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_signals_at_steps_of_the_write_path(victim: Victim, number: int, code: int) -> None:
    """While files are written, old ones are moved aside, new ones come, old ones are removed."""
    last_move = {"caffe": 5, "onnx-data": 8}[victim.kind]
    for step in (1, 3, last_move, last_move + 1, 9):
        victim.reset(is_old_there=True)
        done = stepping.run(victim.folder, victim.arguments(), step, number)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == "bnfold: interrupted\n"
        expected = State.OLD if step <= last_move else State.NEW
        assert victim.state(was_old_there=True) is expected
        assert victim.leftovers() == []


_INTERRUPTED = """
import os, signal, sys
from importlib import import_module
module, name = sys.argv[1].split(":")
module = import_module(module)
original = getattr(module, name)
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), int(sys.argv[2]))
    return original(*args, **kwargs)
setattr(module, name, interrupted)
from bnfold.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    "place",
    ["bnfold.frontends.caffe.fold:read_text", "bnfold.core.plan:solve"],
    ids=["while reading", "while solving"],
)
def test_a_signal_before_anything_is_written(tmp_path: Path, place: str) -> None:
    victim = victims.make("caffe", tmp_path, width=WIDTH)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        done = subprocess.run(
            [sys.executable, "-c", _INTERRUPTED, place, str(int(number)), *victim.arguments()],
            capture_output=True,
            text=True,
            check=False,
            env=stepping.environment(),
        )
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert victim.state(was_old_there=False) is State.OLD
        assert victim.leftovers() == []


def test_an_impatient_second_signal_does_not_stop_the_cleaning() -> None:
    from bnfold.cli._signals import Stopped, signals_raise

    cleaned = False
    with pytest.raises(Stopped), signals_raise():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            cleaned = True
    assert cleaned


def test_signals_that_are_ignored_stay_so() -> None:
    """As nohup does it."""
    from bnfold.cli._signals import signals_raise

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# -------------------------------------------------------------------- disks and folders


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for 32 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = _mount(["-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)])
    if not mounted:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _mount(arguments: list[str]) -> bool:
    try:
        return (
            subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


@pytest.mark.parametrize("kind", victims.KINDS)
def test_a_full_disk(
    tmp_path: Path, tiny_disk: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    victim = victims.make(kind, folder, width=64)  # 150 kB
    target = tiny_disk / victim.outputs[-1]
    target.write_bytes(victims.OLD)
    arguments = ["fold", str(folder / victim.source), "-o", str(target), "--force", "--no-check"]
    assert main(arguments) == USAGE
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tiny_disk.iterdir()] == [target.name]
    assert target.read_bytes() == victims.OLD
    assert victim.state(was_old_there=False) is State.OLD


def test_a_read_only_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mounted so, because root may write where only the permissions say no."""
    victim = victims.make("caffe", tmp_path, width=WIDTH)
    place = tmp_path / "fixed"
    place.mkdir()
    if not _mount(["-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)]):
        pytest.skip("mounting is not allowed here")
    try:
        target = place / "out.prototxt"
        code = main(["fold", str(tmp_path / victim.source), "-o", str(target), "--no-check"])
        assert code == USAGE
        assert str(place) in capsys.readouterr().err
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert victims.hash_of(tmp_path / victim.source) == victim.inputs[victim.source]


def test_read_only_files(victim: Victim) -> None:
    """An input only has to be readable; an old output is replaced, which needs the folder alone."""
    for path in victim.folder.iterdir():
        path.chmod(0o444)
    assert main(victim.arguments()) == 0
    assert victim.state(was_old_there=True) is State.NEW


# -------------------------------------------------------------------- stdout


def test_a_full_stdout(victim: Victim) -> None:
    """The model is written, the answer is not, and that is no success."""
    with Path("/dev/full").open("w") as full:
        run = command(*victim.arguments(), stdout=full)
        _, said = run.communicate()
    assert run.returncode == USAGE
    assert "the answer could not be printed: No space left on device" in said
    assert "Exception ignored" not in said
    assert victim.state(was_old_there=True) is State.NEW


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away(tmp_path: Path, options: list[str]) -> None:
    """As `| head -1` does, whether it has read something or not."""
    victim = victims.make("caffe", tmp_path, width=WIDTH)
    read, write = os.pipe()
    run = command(*victim.arguments(), *options, stdout=write)
    os.close(write)
    os.close(read)
    _, said = run.communicate()
    assert (run.returncode, said) == (0, "")


def test_closed_streams(tmp_path: Path) -> None:
    victim = victims.make("caffe", tmp_path, width=WIDTH)
    line = 'exec "$0" -m bnfold "$@" >&- 2>&-'
    call = ["bash", "-c", line, sys.executable, *victim.arguments()]
    assert subprocess.run(call, check=False, env=stepping.environment()).returncode == 0
    assert all((tmp_path / name).exists() for name in victim.outputs)
    call[-1:] = ["--no-such-option"]
    assert subprocess.run(call, check=False, env=stepping.environment()).returncode == USAGE


def test_names_that_stdout_has_no_letters_for(tmp_path: Path) -> None:
    """A terminal in ASCII, and a layer whose name is none: escaped, and JSON stays JSON."""
    import json

    victim = victims.make("caffe", tmp_path, width=WIDTH)
    text = (tmp_path / victim.source).read_bytes()
    (tmp_path / victim.source).write_bytes(text.replace(b'"bn"', b'"b\xc3\xa4\xff"'))
    weights = (tmp_path / "net.caffemodel").read_bytes()
    (tmp_path / "net.caffemodel").write_bytes(weights.replace(b"\x02bn", b"\x02b\xe4"))
    for encoding in ("ascii", "utf-8"):
        for options in ([], ["--json"]):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "bnfold",
                    "inspect",
                    str(tmp_path / victim.source),
                    *options,
                ],
                capture_output=True,
                check=False,
                env={**stepping.environment(), "PYTHONIOENCODING": encoding},
            )
            assert (done.returncode, done.stderr) == (0, b"")
            if options:
                names = [item["name"] for item in json.loads(done.stdout)["items"]]
                assert "b\xe4\udcff" in names
