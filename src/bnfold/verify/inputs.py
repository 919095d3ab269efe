"""What the models are run on: random numbers of the right shapes, or the user's own.

Random floating-point inputs are standard normal, which is what normalised images look like to a
network; bytes are 0 to 255; other integers are 0 and 1, small enough to be an index into anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnfold._named_shapes import is_shape
from bnfold._paths import is_folder, is_there
from bnfold.errors import MissingExtraError, ModelUnreadableError, UsageError
from bnfold.verify.runner import Array, InputSpec, Runner

_BEYOND = 2
_LARGE = 64
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
Data = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | Array


def are_named(inputs: Any) -> bool:
    """Whether these are an ONNX model's: shapes or arrays by name."""
    return isinstance(inputs, Mapping) and all(
        isinstance(value, np.ndarray) or is_shape(value) for value in inputs.values()
    )


def draw(specs: Sequence[InputSpec], seed: int, sample: int) -> list[Array]:
    """Random inputs. Raises UsageError where they are larger than any memory."""
    rng = np.random.default_rng((seed, sample))
    try:
        return [_draw(spec, rng) for spec in specs]
    except MemoryError as error:
        shapes = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in specs)
        raise UsageError(
            f"there is no memory for an input: {shapes}", "give smaller shapes, with --input"
        ) from error


def _draw(spec: InputSpec, rng: np.random.Generator) -> Array:
    if spec.dtype == "bool":
        return np.asarray(rng.integers(0, 2, spec.shape), dtype=bool)
    if spec.dtype == "uint8":
        return np.asarray(rng.integers(0, 256, spec.shape), dtype=np.uint8)
    if spec.dtype.startswith(("int", "uint")):
        return np.asarray(rng.integers(0, _BEYOND, spec.shape), dtype=spec.dtype)
    return fitted(np.asarray(rng.standard_normal(spec.shape)), spec.dtype)


def fitted(values: Array, dtype: str) -> Array:
    """The values in a dtype; bfloat16, which NumPy lacks, as the float32 numbers it can hold."""
    if dtype != "bfloat16":
        plain: Array = values.astype(dtype)
        return plain
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def other_size(size: int, axis: int) -> int:
    """Another length of an open axis: one sample more, or an image of half the size."""
    if axis == 0:
        return size + 1
    return size // 2 if size >= _LARGE and size % 2 == 0 else 2 * size


def odd_size(size: int, axis: int) -> int:
    """Another one: one sample alone, or an odd length that is not the next axis's."""
    if axis == 0:
        return 1 if size > 1 else 3
    quarters = (5, 6) if size < _LARGE else (3, 5)
    odd = size * quarters[axis % 2] // 4 | 1
    return odd if odd != size else size + 2


OTHER_SIZES = (other_size, odd_size)
"""What is equal for squares, for even lengths or for more than one sample need not be for others:
a model is run on each of these, if it takes it."""


def nudged(inputs: Sequence[Array], specs: Sequence[InputSpec], draw: int) -> list[Array]:
    """Every number moved to one of its neighbours in its dtype, at random."""
    rng = np.random.default_rng((draw, 1))
    return [_nudge(array, spec, rng) for array, spec in zip(inputs, specs, strict=True)]


def _nudge(array: Array, spec: InputSpec, rng: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return array
    up = np.asarray(rng.integers(0, 2, array.shape), dtype=bool)
    if spec.dtype == "bfloat16":
        return fitted(array * np.where(up, 1 + 2.0**-7, 1 - 2.0**-7), spec.dtype)
    ends = np.where(up, np.inf, -np.inf).astype(array.dtype)
    return np.asarray(np.nextafter(array, ends))  # of a scalar NumPy makes no array


def check_inputs(original: Runner, folded: Runner) -> None:
    """Raise UsageError where the two take different inputs."""
    step = "compare models with the same inputs and outputs"
    if len(original.specs) != len(folded.specs):
        for runner in (original, folded):
            if not runner.specs and runner.kind in ("module", "program"):
                raise runner.not_taken(None)  # example inputs without a tensor
        names = [", ".join(spec.name for spec in runner.specs) for runner in (original, folded)]
        raise UsageError(
            f"{original.name} has {len(original.specs)} inputs ({names[0]}),"
            f" {folded.name} {len(folded.specs)} ({names[1]})",
            step,
        )
    for a, b in zip(original.specs, folded.specs, strict=True):
        if a.declared is None or b.declared is None:
            continue
        same = len(a.declared) == len(b.declared) and all(
            m is None or n is None or m == n for m, n in zip(a.declared, b.declared, strict=True)
        )
        if not same:
            raise UsageError(
                f"input {a.name} of {original.name} is {a.declared},"
                f" input {b.name} of {folded.name} {b.declared}",
                step,
            )


def choose_samples(specs: Sequence[InputSpec], count: int, seed: int) -> list[list[Array]]:
    """What the model came with, then random inputs."""
    samples = []
    if specs and all(spec.given is not None for spec in specs):
        samples.append([np.asarray(spec.given) for spec in specs])
    while len(samples) < max(1, count):
        samples.append(draw(specs, seed, len(samples)))
    return samples[: max(1, count)]


# ------------------------------------------------------------------- the user's own


def load(
    data: Data,
    specs: Sequence[InputSpec],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit: int | None = None,
) -> list[list[Array]]:
    """The user's inputs, a list per run. Raises UsageError where they do not fit the model."""
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if is_folder(path):
            return _folder(path, _only(specs, str(path)), mean, std, limit)
        if mean is not None or std is not None:
            raise UsageError(
                f"mean and std are for a folder of images, not {path}", "leave them out"
            )
        data = _file(path)
    named = _named(data, specs)
    return _runs(named, specs, limit)


def _only(specs: Sequence[InputSpec], what: str) -> InputSpec:
    if len(specs) != 1:
        raise UsageError(
            f"{what} is for one input, and the model has {len(specs)}",
            f"pass an .npz with arrays called {', '.join(spec.name for spec in specs)}",
        )
    return specs[0]


def _file(path: Path) -> Any:
    step = "pass an .npz or .npy written by NumPy, or a folder of images"
    if not is_there(path):
        raise ModelUnreadableError(str(path), "no such file", step)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise UsageError(f"{path} is no .npz, .npy or folder", step)
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError, EOFError) as error:
        raise ModelUnreadableError(str(path), f"not NumPy's ({error})".rstrip("."), step) from error
    except Exception as error:  # zipfile's, whatever a damaged archive makes it raise
        raise ModelUnreadableError(str(path), "a damaged archive", step) from error


def _named(data: Any, specs: Sequence[InputSpec]) -> list[Array]:
    """One array per input, in order."""
    if isinstance(data, Mapping):
        missing = [spec.name for spec in specs if spec.name not in data]
        if not missing:
            return [np.asarray(data[spec.name]) for spec in specs]
        if len(data) == len(specs) == 1:  # one array for one input needs no name
            return [np.asarray(next(iter(data.values())))]
        raise UsageError(
            f"the data has no array for the input {missing[0]!r} (it has {', '.join(data)})",
            f"name its arrays {', '.join(spec.name for spec in specs)}",
        )
    if isinstance(data, np.ndarray):
        _only(specs, "one array")
        return [data]
    arrays = [np.asarray(array) for array in data]
    if len(arrays) != len(specs):
        raise UsageError(
            f"{len(arrays)} arrays are given, and the model has {len(specs)} inputs",
            "pass one per input",
        )
    return arrays


def _runs(
    arrays: Sequence[Array], specs: Sequence[InputSpec], limit: int | None
) -> list[list[Array]]:
    """The arrays as they are, or cut along the first axis into runs of the model's batch."""
    cut = [_batches(array, spec) for array, spec in zip(arrays, specs, strict=True)]
    counts = {len(batches) for batches in cut}
    if len(counts) != 1:
        raise UsageError(
            f"the arrays hold different numbers of samples: {sorted(counts)}",
            "pass as many of each",
        )
    runs = [list(run) for run in zip(*cut, strict=True)]
    return runs if limit is None else runs[:limit]


def _batches(array: Array, spec: InputSpec) -> list[Array]:
    """What one input gets, run by run."""
    if array.dtype.kind not in "fiub":
        raise UsageError(f"the data for {spec.name!r} is {array.dtype}", "pass numbers")
    declared = spec.shape if spec.declared is None else spec.declared
    if array.ndim == len(declared) - 1:  # one sample without a batch axis
        array = array[None]
    fits = array.ndim == len(declared) and all(
        want in (None, have) for have, want in zip(array.shape[1:], declared[1:], strict=True)
    )
    batch = declared[0] if declared else None
    if not fits or (batch and (array.shape[0] % batch or not array.shape[0])) or 0 in array.shape:
        said = "x".join("?" if size is None else str(size) for size in declared)
        shape = "x".join(map(str, array.shape)) or "a single number"
        raise UsageError(
            f"the data for {spec.name!r} is {shape}, and the model takes {said}",
            "pass arrays of that shape; the first axis may hold a multiple of it",
        )
    array = fitted(array, spec.dtype)
    return [array] if not batch else np.split(array, array.shape[0] // batch)


def _folder(
    folder: Path,
    spec: InputSpec,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    limit: int | None,
) -> list[list[Array]]:
    """Images, resized to the model's input; (N, C, H, W), or (N, H, W, C) where C is last."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images", "Pillow") from error
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
    if not files:
        raise UsageError(f"{folder} holds no images", f"put some there ({', '.join(_IMAGES)})")
    first, height, width, channels = _image_layout(spec)
    center, spread = _per_channel(mean, channels, 0.0), _per_channel(std, channels, 1.0)
    runs = []
    for path in files[:limit]:
        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if channels == 1 else "RGB").resize((width, height))
        except (OSError, ValueError) as error:
            raise ModelUnreadableError(str(path), "not an image", "remove it") from error
        pixels = np.asarray(image, dtype=np.float64).reshape(height, width, channels) / 255.0
        pixels = (pixels - center) / spread
        if spec.dtype == "uint8":
            pixels = np.rint(pixels * 255.0).clip(0, 255)
        laid = pixels.transpose(2, 0, 1) if first else pixels
        batch = np.broadcast_to(laid, (spec.shape[0], *laid.shape))
        runs.append([fitted(np.ascontiguousarray(batch), spec.dtype)])
    return runs


def _image_layout(spec: InputSpec) -> tuple[bool, int, int, int]:
    """Whether channels come first; height, width, channels."""
    if len(spec.shape) == 4:
        _, a, b, c = spec.shape
        if a in (1, 3):
            return True, b, c, a
        if c in (1, 3):
            return False, a, b, c
    raise UsageError(
        f"the input {spec.name!r} is {'x'.join(map(str, spec.shape))}, which is no image",
        "pass an .npz or .npy instead of a folder",
    )


def _per_channel(values: Sequence[float] | None, channels: int, default: float) -> Array:
    given = [default] if values is None else list(values)
    if len(given) not in (1, channels):
        raise UsageError(
            f"{len(given)} numbers are given as mean or std, and images have {channels} channels",
            f"give one, or {channels}",
        )
    return np.broadcast_to(np.array(given, dtype=np.float64), (channels,))
