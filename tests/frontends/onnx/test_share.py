"""Threads that share a list of tasks, and tensors that they multiply."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest

from bnfold._threads import share
from bnfold.core.fitting import Overflow
from bnfold.frontends.onnx import tensor_data, write


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_ends_the_work_and_is_raised(threads):
    begun = []
    before = threading.active_count()

    def work(tasks):
        for task in tasks:
            begun.append(task)
            if task == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share(range(100_000), work, threads=threads)
    assert len(begun) < 100_000
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_is_done_once(threads):
    done = []
    share(range(1000), done.extend, threads=threads)
    assert sorted(done) == list(range(1000))


def test_threads_really_share():
    """Both are at work at once: each waits until the other has a task as well."""
    meeting = threading.Barrier(2, timeout=20)

    def work(tasks):
        for _ in tasks:
            meeting.wait()

    share(range(6), work, threads=2)


def test_where_no_threads_are_to_be_had(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    share(range(10), done.extend, threads=4)
    assert done == list(range(10))


@pytest.fixture
def many_threads(monkeypatch):
    monkeypatch.setattr(tensor_data, "processors", lambda: 4)
    monkeypatch.setattr(tensor_data, "_ROWS", 1 << 8)


def scaled(tmp_path, content, factor) -> tensor_data.ScaledData:
    source = tmp_path / "source"
    source.write_bytes(b"before" + content.tobytes() + b"behind")
    place = tensor_data.FileData(source, 6, content.nbytes)
    return tensor_data.ScaledData(place, content.dtype, content.shape, factor, Overflow(3))


def test_an_overflow_in_some_block_is_raised(tmp_path, many_threads):
    content = np.ones((500, 70), np.float32)
    factor = np.ones((500, 1))
    factor[321] = 1e39
    with (tmp_path / "new").open("xb") as file, pytest.raises(Overflow) as raised:
        scaled(tmp_path, content, factor).write_to(file)
    assert raised.value.ops == (3,)


def test_written_in_its_place_by_many(tmp_path, many_threads):
    """What stands before it in the file stays, and writing goes on behind it."""
    rng = np.random.default_rng(0)
    content = rng.normal(size=(500, 7, 5)).astype(np.float32)
    content[3, 1, 1], content[400, 2, 2] = np.inf, np.nan
    factor = rng.normal(size=(500, 7, 1))
    path = tmp_path / "new"
    with path.open("xb") as file:
        file.write(b"head")
        scaled(tmp_path, content, factor).write_to(file)
        assert file.tell() == 4 + content.nbytes
        file.write(b"tail")
    expected = (content * factor).astype(np.float32)
    assert path.read_bytes() == b"head" + expected.tobytes() + b"tail"


def test_a_source_that_became_shorter(tmp_path, many_threads):
    content = np.ones((500, 70), np.float32)
    tensor = scaled(tmp_path, content, np.full((500, 1), 2.0))
    os.truncate(tmp_path / "source", 100_000)
    with (tmp_path / "new").open("xb") as file, pytest.raises(OSError, match="shorter"):
        tensor.write_to(file)


# -------------------------------------------------------------------- room for the file


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_no_room_on_the_disk(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no room")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    stage = write.Staged(tmp_path, "new")
    with pytest.raises(OSError, match="no room"), write._complete(stage.model, stage, 1 << 30):
        pytest.fail("there is no room to write")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_file_system_that_cannot_set_room_aside(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "cannot")

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    with write._complete(tmp_path / "new", write.Staged(tmp_path, "new"), 1 << 30) as file:
        file.write(b"content")
    assert (tmp_path / "new").read_bytes() == b"content"


@pytest.mark.parametrize("is_copied_by_the_kernel", [True, False])
def test_a_file_is_as_long_as_what_is_in_it(tmp_path, monkeypatch, is_copied_by_the_kernel):
    """More room was set aside, and parts are copied into the middle of it."""
    monkeypatch.setattr(tensor_data, "_BLOCK", 1 << 10 if is_copied_by_the_kernel else 1 << 30)
    content = np.random.default_rng(0).bytes(1 << 16)
    (tmp_path / "old").write_bytes(b"before" + content)
    with write._complete(tmp_path / "new", write.Staged(tmp_path, "new"), 1 << 23) as file:
        file.write(b"head")
        tensor_data.FileData(tmp_path / "old", 6, len(content)).write_to(file)
        file.write(b"tail")
    assert (tmp_path / "new").read_bytes() == b"head" + content + b"tail"
