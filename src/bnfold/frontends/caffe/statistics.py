"""What the arrays of a BatchNorm are, which the forks of Caffe write in different orders.

    BVLC     mean, var, factor                  y = (x - s * mean) / sqrt(s * var + eps)
    NVIDIA   the same three                     the same, eps at least 1e-5
             mean, var, factor, gamma, beta     y = gamma * (x - mean) / sqrt(var + eps) + beta
             gamma, beta, mean, var, factor     the same; the order of its first versions

s is 1 / factor, or 0 if the factor is 0. NVIDIA's loader (CopyTrainedLayersFrom) takes arrays of
any shape with C entries, 1 x C x 1 x 1 above all, knows the older order by the single entry of its
last array (with one channel nobody can), and divides three arrays by their factor, but not five.
"""

from __future__ import annotations

import numpy as np

from bnfold.core.affine import Affine, FloatArray
from bnfold.frontends.caffe.caffemodel import Blob
from bnfold.frontends.caffe.lift_linear import check_shape
from bnfold.frontends.caffe.lifter import Lifter
from bnfold.frontends.caffe.net import Layer
from bnfold.frontends.caffe.options import Options

_FILLERS = ("scale_filler", "bias_filler")
_NVIDIA_EPS = float(np.float32(1e-5))
_STRANGE = "its arrays are not those of a BatchNorm that bnfold knows"
_TWO_ORDERS = "with one channel its five arrays can be read in two orders"
_NEW, _OLD = (0, 1, 2, 3, 4), (2, 3, 4, 0, 1)
"""Where mean, var, factor, gamma and beta are."""

Maps = tuple[Affine, Affine]
"""A BatchNorm, and what it makes of values that it has normalised: gamma and beta."""


def read_batch_norm(lifter: Lifter, layer: Layer, options: Options, channels: int) -> Maps | str:
    """The map of a BatchNorm, or why it is not known. Raises ModelUnreadableError."""
    eps = float(np.float32(options.number("eps", 1e-5)))
    if layer.stored is None:
        lifter.net.notes.append(f"{layer.name} has no weights in the file: Caffe takes zeros")
        return _maps(np.zeros(channels), np.zeros(channels), eps)
    if len(layer.blobs) == 3:
        return _of_three(lifter, layer, options, channels, eps)
    if len(layer.blobs) == 5 and _wants_five(options):
        return _of_five(lifter, layer, channels, max(eps, _NVIDIA_EPS))
    return _STRANGE  # Intel's, or somebody else's


def numbers(blob: Blob) -> FloatArray:
    """The entries of an array, in float64."""
    return blob.read().reshape(-1).astype(np.float64)


def _wants_five(options: Options) -> bool:
    """Whether NVIDIA's layer has gamma and beta."""
    return options.flag("scale_bias", default=False) or options.has(*_FILLERS)


def _of_three(
    lifter: Lifter, layer: Layer, options: Options, channels: int, eps: float
) -> Maps | str:
    if _wants_five(options):
        return _STRANGE  # gamma and beta would be the fillers'
    is_nvidia = lifter.is_nvidia or options.has("scale_bias")
    if layer.blobs[0].shape == (1, channels, 1, 1) and eps >= _NVIDIA_EPS:
        is_nvidia = True  # no other loader takes that, and eps is the same for all
    _check(lifter, layer, (channels, channels, 1), is_nvidia=is_nvidia)
    mean, var, factor = map(numbers, layer.blobs)
    mean, var = _divided(mean, factor), _divided(var, factor)
    return _maps(mean, var, max(eps, _NVIDIA_EPS) if is_nvidia else eps)


def _divided(sums: FloatArray, factor: FloatArray) -> FloatArray:
    """s * sums; not finite where that is not so in float32, in which Caffe computes both."""
    with np.errstate(all="ignore"):
        held = factor.astype(np.float32)
        s = np.where(held == 0, np.float32(0.0), 1 / held)
        is_held = np.isfinite(s * sums.astype(np.float32))
        return np.where(is_held, np.where(held == 0, 0.0, 1.0 / factor) * sums, np.nan)


def _of_five(lifter: Lifter, layer: Layer, channels: int, eps: float) -> Maps | str:
    order = _OLD if layer.blobs[4].count == 1 else _NEW
    wanted = [channels] * 5
    wanted[order[2]] = 1
    _check(lifter, layer, tuple(wanted), is_nvidia=True)
    if channels == 1:
        return _TWO_ORDERS
    mean, var, _, gamma, beta = (numbers(layer.blobs[place]) for place in order)
    return _maps(mean, var, eps, Affine(gamma, beta))


def _maps(mean: FloatArray, var: FloatArray, eps: float, then: Affine | None = None) -> Maps:
    then = then or Affine(np.ones(len(mean)), np.zeros(len(mean)))
    return Affine.from_batchnorm(mean, var, eps, then.scale, then.shift), then


def _check(lifter: Lifter, layer: Layer, counts: tuple[int, ...], *, is_nvidia: bool) -> None:
    """NVIDIA's arrays may have further axes of length 1."""
    for index, count in enumerate(counts):
        blob = layer.blobs[index]
        if is_nvidia and blob.count == max(blob.shape, default=1) == count:
            blob.check()
        else:
            check_shape(lifter.net.weights.name, layer, index, (count,))
