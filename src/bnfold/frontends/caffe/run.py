"""Run a Caffe network, from its files, without Caffe: on any machine, in float32 or float64.

The layers are those of `run_layers`. Where the text does not say how large an input is, an input
is drawn that fits the layers which read it: the batch is 1, an image has 224 rows and columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bnfold.errors import MissingExtraError, ModelUnreadableError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "PyTorch") from error

from bnfold.frontends.caffe.caffemodel import open_caffemodel
from bnfold.frontends.caffe.geometry import CONVOLUTIONS
from bnfold.frontends.caffe.known_fields import unknown_fields
from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.run_layers import Execution, RunLayer, Watch, execute
from bnfold.frontends.caffe.shapes import infer

Array = NDArray[Any]
_SEED = 0
_SIDE = 224
"""Rows and columns of an image whose size is not known."""


def run_net(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str],
    inputs: Mapping[str, Array] | None = None,
    dtype: DTypeLike = np.float64,
) -> dict[str, Array]:
    """What the TEST phase of a network computes.

    Args:
        prototxt: The network's text.
        caffemodel: Its weights.
        inputs: Arrays by blob name; what is not given is drawn at random, always alike.
        dtype: float32 or float64, for weights, inputs and arithmetic.

    Returns:
        The outputs by blob name, and by 'layer.bottom[i]' what layers read that cannot be run
        here. Outputs behind such layers are missing.

    Raises:
        ModelUnreadableError: A file is damaged, or an array does not fit its layer.
        ValueError: An input does not fit the network.
        MissingExtraError: PyTorch is not installed.
    """
    file = Path(prototxt)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelUnreadableError(
            str(file), error.strerror or str(error), "name a .prototxt file"
        ) from error
    net = read_net(read_text(content, str(file)), open_caffemodel(caffemodel))
    infer(net)
    given = {**example_inputs(net), **(inputs or {})}
    return {name: value.numpy() for name, value in run(net, given, dtype).values.items()}


def run(
    net: Net,
    inputs: Mapping[str, Array],
    dtype: DTypeLike = np.float64,
    *,
    watch: Watch | None = None,
    change: Callable[[Array], Array] = lambda array: array,
) -> Execution:
    """Run a network whose shapes are inferred. Raises ValueError if the inputs do not fit it.

    `change` is applied to every array of the weights, on its way into the run.
    """
    kind = torch.float64 if np.dtype(dtype) == np.float64 else torch.float32
    arrays = _arrays(net)
    layers = [
        RunLayer(
            layer.name,
            layer.type,
            tuple(bottom.string for bottom in layer.bottoms),
            tuple(top.string for top in layer.tops),
            layer.options,
            tuple(torch.from_numpy(change(array).astype(dtype)) for array in arrays[id(layer)]),
            is_testing=layer.phase == "TEST",
            unknown=unknown_fields(layer.options),
        )
        for layer in net.layers
        if layer.bottoms
    ]
    given = {name: torch.from_numpy(np.array(x)).to(kind) for name, x in inputs.items()}
    return execute(layers, given, watch)


def example_inputs(net: Net, *, seed: int = _SEED) -> dict[str, Array]:
    """Random inputs of a network whose shapes are inferred; none where no shape can be found."""
    rng = np.random.default_rng(seed)
    fed = list(net.inputs)
    fed += [number for layer in net.layers if not layer.bottoms for number in layer.outputs]
    drawn: dict[str, Array] = {}
    for number in fed:
        shape = _input_shape(net, number)
        if shape is not None:
            drawn[net.values[number].name] = rng.normal(size=shape)
    return drawn


def _input_shape(net: Net, number: int) -> tuple[int, ...] | None:
    value = net.values[number]
    channels = next((c for c in map(_channels_read, value.readers) if c), None)
    shape = value.shape
    if shape is None and channels is None:
        return None
    if shape is None:
        shape = (None,) * 4
    defaults = [1, channels or 3, *[_SIDE] * len(shape)]
    return tuple(d if size is None else size for size, d in zip(shape, defaults, strict=False))


def _channels_read(layer: Layer) -> int | None:
    """How many channels a convolution reads."""
    if layer.type not in CONVOLUTIONS or not layer.blobs or len(layer.blobs[0].shape) != 4:
        return None
    group = layer.options.part("convolution_param").integer("group", 1)
    return layer.blobs[0].shape[1] * group


def _arrays(net: Net) -> dict[int, list[Array]]:
    """The arrays of each layer, by its identity: of those with one name, the last loaded counts."""
    order = {id(stored): place for place, stored in enumerate(net.weights.layers)}
    loaded = [layer for layer in net.layers if layer.stored is not None]
    loaded.sort(key=lambda layer: order[id(layer.stored)])
    shared: dict[str, Array] = {}
    by_layer = {id(layer): [blob.read() for blob in layer.blobs] for layer in net.layers}
    for layer in loaded:
        shared.update(zip(layer.param_names, by_layer[id(layer)], strict=False))
    for layer in net.layers:
        arrays = by_layer[id(layer)]
        for place, name in enumerate(layer.param_names):
            if name and name in shared and place <= len(arrays):
                arrays[place : place + 1] = [shared[name]]
    return by_layer
