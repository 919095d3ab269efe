"""Make the network of a prototxt and its weights: read the layers, wire them, give them arrays.

Sources, all in BVLC/caffe: src/caffe/net.cpp (AppendTop, AppendParam,
CopyTrainedLayersFrom), src/caffe/util/upgrade_proto.cpp.
"""

from __future__ import annotations

from bnfold.frontends.caffe.caffemodel import Caffemodel
from bnfold.frontends.caffe.net import Layer, Net, Value
from bnfold.frontends.caffe.options import Options
from bnfold.frontends.caffe.phases import PHASES, needed_elsewhere, state_of
from bnfold.frontends.caffe.text_tree import Document, Field, Message, Scalar

_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "IMAGE_DATA": "ImageData",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SPLIT": "Split",
    "TANH": "TanH",
    "WINDOW_DATA": "WindowData",
}
"""V1's enum as today's names; a word that is not here (BN, of forks) stays as it is."""
_V1_NUMBERS = {
    **{2: "BNLL", 3: "CONCAT", 4: "CONVOLUTION", 5: "DATA", 6: "DROPOUT", 8: "FLATTEN"},
    **{9: "HDF5_DATA", 12: "IMAGE_DATA", 14: "INNER_PRODUCT", 15: "LRN", 17: "POOLING"},
    **{18: "RELU", 19: "SIGMOID", 20: "SOFTMAX", 22: "SPLIT", 23: "TANH", 24: "WINDOW_DATA"},
    **{25: "ELTWISE", 26: "POWER", 29: "MEMORY_DATA", 32: "DUMMY_DATA", 33: "SLICE", 34: "MVN"},
    **{35: "ABSVAL", 36: "SILENCE", 38: "EXP", 39: "DECONVOLUTION"},
}
"""The same by number, as text may have it, too."""


def read_net(document: Document, weights: Caffemodel) -> Net:
    """The TEST phase of a network. Raises ModelUnreadableError."""
    net = Net(document, weights)
    whole = Options(document, document.root)
    state = state_of(whole, "TEST")
    for field, message in _layer_fields(document):
        layer = _layer(document, field, message, default_phase=state.phase)
        (net.layers if state.includes(layer.options) else net.others).append(layer)
    _wire(net, whole)
    net.elsewhere = needed_elsewhere(net, state_of(whole, "TRAIN"))
    _match(net)
    return net


def is_for_training(document: Document) -> bool:
    """Whether some layers of the file are there for training only."""
    whole = Options(document, document.root)
    train, test = (state_of(whole, phase) for phase in PHASES.values())
    layers = [Options(document, message) for _, message in _layer_fields(document)]
    return any(train.includes(layer) and not test.includes(layer) for layer in layers)


def _layer_fields(document: Document) -> list[tuple[Field, Message]]:
    """Where there are layers of V1, Caffe's upgrade forgets all others."""
    fields = list(document.root.named("layers")) or list(document.root.named("layer"))
    layers = []
    for field in fields:
        for message in field.values:
            if isinstance(message, Scalar) or field.is_list:
                raise document.error(
                    field.start,
                    f"{field.name} should be a message in braces",
                    "write one per layer",
                )
            layers.append((field, message))
    return layers


def _layer(document: Document, field: Field, message: Message, *, default_phase: str) -> Layer:
    options = Options(document, message)
    kind = options.text("type")
    inner = message.messages("layer") if field.name == "layers" else []
    if inner:  # V0 keeps all but the wiring in a layer of its own
        name, kind = Options(document, inner[-1]).text("name"), ""
    else:
        name = options.text("name")
        if field.name == "layers":
            kind = options.word("type", "", _V1_NUMBERS)
            kind = _V1_TYPES.get(kind, kind)
    return Layer(
        name,
        kind,
        options,
        field,
        message,
        message.scalars("bottom"),
        message.scalars("top"),
        options.word("phase", default_phase, PHASES),
    )


def _wire(net: Net, whole: Options) -> None:
    """Find out which version of a blob each layer reads."""
    latest: dict[str, int] = {}
    for name in _input_names(net, whole):
        latest[name] = _new_value(net, name, None)
        net.inputs.append(latest[name])
    elsewhere = {top.string for layer in net.others for top in layer.tops}
    for layer in net.layers:
        for bottom in layer.bottoms:
            name = bottom.string
            if name not in latest and name in elsewhere:
                latest[name] = _new_value(net, name, None)
                net.inputs.append(latest[name])
                net.notes.append(f"{name} is made by no layer of the TEST phase: taken as an input")
            elif name not in latest:
                raise net.document.error(
                    bottom.start,
                    f"the layer {layer.name} reads {name}, which no layer before it makes",
                )
            layer.inputs.append(latest[name])
            net.values[latest[name]].readers.append(layer)
        for top in layer.tops:
            latest[top.string] = _new_value(net, top.string, layer)
            layer.outputs.append(latest[top.string])
    _find_outputs(net)


def _input_names(net: Net, whole: Options) -> list[str]:
    """The inputs of the network that no layer makes.

    UpgradeNetInput makes an Input layer of the `input` fields if the file has `input_shape` or
    `input_dim`, and else drops them: a layer makes the blob. With both there are two of the name.
    """
    made: dict[str, Scalar] = {}
    read: set[str] = set()
    for layer in net.layers:
        read.update(bottom.string for bottom in layer.bottoms)
        for top in layer.tops:
            if top.string not in read:
                made.setdefault(top.string, top)
    names = whole.texts("input")
    if not whole.has("input_shape", "input_dim"):
        return [name for name in dict.fromkeys(names) if name not in made]
    for name in names:
        if name in made:
            raise net.document.error(
                made[name].start,
                f"{name} is made by a layer and is an input of the network, too",
                "drop one of the two",
            )
    return names


def _new_value(net: Net, name: str, maker: Layer | None) -> int:
    net.values.append(Value(name, maker))
    return len(net.values) - 1


def _find_outputs(net: Net) -> None:
    """What nobody reads is an output, and so is what has a loss weight."""
    for number, value in enumerate(net.values):
        if not value.readers:
            net.outputs[number] = value.name
    for layer in net.layers:
        weights = layer.options.numbers("loss_weight")
        for number, weight in zip(layer.outputs, weights, strict=False):
            if weight != 0:
                net.outputs[number] = net.values[number].name


def _match(net: Net) -> None:
    """Give each layer its weights: by name; of two layers of one name, the first gets them."""
    stored = net.weights.by_name()
    taken: set[str] = set()
    for layer in net.layers:
        if layer.name in stored and layer.name not in taken:
            layer.stored = net.weights.layers[stored[layer.name]]
            taken.add(layer.name)
