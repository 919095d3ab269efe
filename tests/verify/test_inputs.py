"""The user's own inputs: files, shapes, images; and random ones."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError, UsageError
from bnfold.verify.inputs import draw, fitted, load, nudged
from bnfold.verify.runner import InputSpec

IMAGE = InputSpec("x", (2, 3, 4, 5), "float32", declared=(2, 3, 4, 5))
OPEN = InputSpec("x", (2, 3, 4, 5), "float32", declared=(None, 3, None, None))
INDEX = InputSpec("ids", (2, 7), "int64")


def test_what_no_memory_holds_is_refused():
    """No array of this size can be asked for, so nothing is ever taken."""
    large = InputSpec("x", (1 << 30, 1 << 20), "float32")
    with pytest.raises(UsageError, match="no memory for an input: x 1073741824x1048576"):
        draw([large], 0, 0)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ModelUnreadableError, match="no such file"):
        load(tmp_path / "no.npz", [IMAGE])
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ModelUnreadableError, match=r"a\.npz"):
        load(tmp_path / "a.npz", [IMAGE])
    (tmp_path / "a.txt").write_text("1 2")
    with pytest.raises(UsageError, match=r"is no \.npz"):
        load(tmp_path / "a.txt", [IMAGE])
    for shape in ((2, 4, 4, 5), (3, 3, 4, 5), (0, 3, 4, 5), (2, 3, 4)):
        with pytest.raises(UsageError, match="the model takes 2x3x4x5"):
            load({"x": np.zeros(shape)}, [IMAGE])
    with pytest.raises(UsageError, match="no array for the input 'ids'"):
        load({"x": np.zeros((2, 3, 4, 5)), "y": np.zeros(2)}, [IMAGE, INDEX])
    with pytest.raises(UsageError, match="different numbers of samples"):
        load({"x": np.zeros((4, 3, 4, 5)), "ids": np.zeros((2, 7))}, [IMAGE, INDEX])
    with pytest.raises(UsageError, match="pass numbers"):
        load({"x": np.zeros((2, 3, 4, 5), dtype="U3")}, [IMAGE])
    with pytest.raises(UsageError, match="one input"):
        load(np.zeros((2, 3)), [IMAGE, INDEX])
    with pytest.raises(UsageError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        load(tmp_path / "empty", [IMAGE])
    pickled = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "p.npy", pickled, allow_pickle=True)
    with pytest.raises(ModelUnreadableError):
        load(tmp_path / "p.npy", [IMAGE])


def test_arrays_are_cut_into_batches(tmp_path):
    array = np.random.default_rng(0).normal(size=(6, 3, 4, 5))
    np.savez(tmp_path / "a.npz", x=array)
    runs = load(tmp_path / "a.npz", [IMAGE])
    assert len(runs) == 3 and runs[1][0].dtype == np.float32
    assert np.array_equal(runs[1][0], array[2:4].astype(np.float32))
    assert len(load(tmp_path / "a.npz", [IMAGE], limit=2)) == 2
    np.save(tmp_path / "a.npy", array)
    assert len(load(tmp_path / "a.npy", [IMAGE])) == 3
    assert load({"x": array[:, :, :3]}, [OPEN])[0][0].shape == (6, 3, 3, 5)


@pytest.mark.parametrize("channels_first", [True, False])
def test_a_folder_of_images(tmp_path, channels_first):
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, 51
    pillow.fromarray(pixels).save(tmp_path / "red.png")
    (tmp_path / "notes.txt").write_text("no image")
    shape = (2, 3, 4, 5) if channels_first else (2, 4, 5, 3)
    spec = InputSpec("x", shape, "float32")
    ((x,),) = load(tmp_path, [spec], mean=[0.5, 0.0, 0.1], std=[0.5])
    assert x.shape == shape and x.dtype == np.float32
    colours = x[1, :, 2, 3] if channels_first else x[1, 2, 3]
    np.testing.assert_allclose(colours, [1.0, 0.0, 0.2], atol=1e-6)
    with pytest.raises(UsageError, match="which is no image"):
        load(tmp_path, [INDEX])
    with pytest.raises(UsageError, match="2 numbers"):
        load(tmp_path, [spec], mean=[0.5, 0.0])


def test_random_inputs():
    mask = InputSpec("m", (50,), "bool")
    pixels = InputSpec("p", (200,), "uint8")
    x, ids, m, p = draw([IMAGE, INDEX, mask, pixels], 0, 0)
    assert (x.dtype, ids.dtype, m.dtype, p.dtype) == (np.float32, np.int64, bool, np.uint8)
    assert set(ids.reshape(-1)) == {0, 1} and p.max() > 200
    assert np.array_equal(draw([IMAGE], 0, 0)[0], x)
    assert not np.array_equal(draw([IMAGE], 0, 1)[0], x)


def test_bfloat16_is_float32_that_it_can_hold():
    values = fitted(np.array([1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -3.1]), "bfloat16")
    assert values.tolist() == [1.0, 1.0, 1.015625, -3.09375]


def test_a_nudge_is_one_step():
    (x,) = nudged([np.ones((2, 3, 4, 5), np.float32)], [IMAGE], 0)
    assert set(x.reshape(-1).tolist()) == {1 - 2.0**-24, 1 + 2.0**-23}
    (b,) = nudged([np.ones(9, np.float32)], [InputSpec("b", (9,), "bfloat16")], 0)
    assert set(b.tolist()) <= {1 - 2.0**-7, 1 + 2.0**-7, 1 - 2.0**-8} and len(set(b.tolist())) == 2
