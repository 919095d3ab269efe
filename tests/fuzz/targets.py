"""What the fuzzer runs, and what the test command replays.

Each target takes the bytes of a file from a stranger. A `BnfoldError` is an answer; everything else
that comes out, and every assertion here, is a bug.

    prototxt      parse, print, wire up, infer shapes
    caffemodel    find the layers, read the arrays, write the file again
    onnx          read, find the large tensors, put the nodes in order, write again
    caffe         a prototxt, a separator, a caffemodel: fold, write, fold again
    onnx-fold     an ONNX file: infer, lift, plan, fold, serialise

The first three are the parsers, and quick; the other two are everything behind them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from onnx import ModelProto

from bnfold.errors import BnfoldError, ModelUnreadableError
from bnfold.frontends.caffe.caffemodel import Caffemodel, read_caffemodel
from bnfold.frontends.caffe.fold import fold_read
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.read import is_for_training, read_net
from bnfold.frontends.caffe.shapes import infer
from bnfold.frontends.caffe.text_tree import Document, Edits, Message, Scalar, encode
from bnfold.frontends.caffe.write import Changes, rewrite
from bnfold.frontends.onnx.fold import prepare
from bnfold.frontends.onnx.nodes import read_network
from bnfold.frontends.onnx.read import OnnxModel, read_file
from bnfold.frontends.onnx.write import to_proto
from bnfold.report import FoldReport

CORPUS = Path(__file__).with_name("corpus")
_SOME = 3
"""Layers, and arrays of each, that are written anew: more take time and show the same."""
SEPARATOR = b"\n# weights\n"


def prototxt(data: bytes) -> None:
    """The text of a network; its weights are fixed."""
    try:
        document = read_text(data, "net.prototxt")
    except BnfoldError:
        return
    assert encode(Edits().apply(document.text)) == data, "the text does not survive"
    _check_places(document)
    try:
        is_for_training(document)
        infer(read_net(document, _weights()))
    except BnfoldError:
        return


def caffemodel(data: bytes) -> None:
    """The weights of a network."""
    try:
        model = read_caffemodel(data, "net.caffemodel")
    except BnfoldError:
        return
    assert b"".join(rewrite(model, Changes())) == data, "the file does not survive"
    _check_arrays(model)


def onnx(data: bytes) -> None:
    """A model in a file."""
    try:
        model = _read_onnx(data)
        read_network(model.name, model.proto)
    except BnfoldError:
        return
    if not model.external:
        whole = ModelProto.FromString(data)
        assert _plain(to_proto(model)) == _plain(whole), "the model does not survive"


def caffe(data: bytes) -> None:
    """A network and its weights, all the way."""
    text, _, stored = data.partition(SEPARATOR)
    try:
        weights = read_caffemodel(stored, "net.caffemodel")
        document = read_text(text, "net.prototxt")
        folded, report = fold_read(document, weights, clip="auto", phase="test")
        new_text, new_weights = folded.text, b"".join(folded.weights())
    except BnfoldError:
        return
    _check_report(report)
    # What was written is a network again, of which no more can go.
    again = read_text(new_text, "folded"), read_caffemodel(new_weights, "folded")
    try:
        second = fold_read(*again, clip="auto", phase="test")[1]
    except ModelUnreadableError as error:  # the layers that had weights are those that went
        assert "is called like a layer of" in error.detail
        return
    assert second.total <= report.kept, "a second fold finds more than the first one left"


def onnx_fold(data: bytes) -> None:
    """A model in a file, all the way."""
    try:
        folding = prepare(_read_onnx(data), None, clip="auto")
        folding.check()
        model = folding.folded()
    except BnfoldError:
        return
    _check_report(folding.report)
    size = sum(data.nbytes for data in model.tensor_data.values())
    assert size <= 4 * len(data) + (1 << 16), "the folded model is much larger"
    to_proto(model)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "prototxt": prototxt,
    "caffemodel": caffemodel,
    "onnx": onnx,
    "caffe": caffe,
    "onnx-fold": onnx_fold,
}


def corpus(target: str) -> Iterator[Path]:
    """The files of a target: seeds, and what once went wrong."""
    return iter(sorted((CORPUS / target.removesuffix("-fold")).iterdir()))


# ------------------------------------------------------------------ what has to hold


def _check_places(document: Document) -> None:
    """Every node stands where it says, inside of its message and in order."""
    waiting: list[tuple[Message, int]] = [(document.root, len(document.text))]
    while waiting:
        message, limit = waiting.pop()
        assert 0 <= message.start <= message.end <= limit
        for one, behind in pairwise((*message.fields, None)):
            assert one is not None
            stop = message.end if behind is None else behind.start
            assert message.start <= one.start < one.end <= stop, one.name
            assert document.text.startswith(one.name, one.start)
            for value in one.values:
                if isinstance(value, Scalar):
                    assert one.start < value.start < value.end <= one.end
                    assert isinstance(value.string, str)
                else:
                    waiting.append((value, one.end))


def _check_arrays(model: Caffemodel) -> None:
    """Arrays that are written back unchanged are read back unchanged."""
    arrays = {}
    for index, layer in enumerate(model.layers[:_SOME]):
        for position, blob in enumerate(layer.blobs[:_SOME]):
            try:
                arrays[index, position] = blob.read()
            except BnfoldError:
                continue
    makes = {key: (lambda array=array: array) for key, array in arrays.items()}
    again = read_caffemodel(b"".join(rewrite(model, Changes(arrays=makes))), "again")
    assert len(again.layers) == len(model.layers)
    for (index, position), array in arrays.items():
        new = again.layers[index].blobs[position].read()
        assert new.dtype == array.dtype and new.shape == array.shape
        assert new.tobytes() == array.tobytes(), "an array does not survive"


def _check_report(report: FoldReport) -> None:
    """A report can be shown and sent, whatever the names in it are."""
    assert FoldReport.from_json(report.to_json()).to_dict() == report.to_dict()
    report.to_json().encode()
    shown = report.table()
    assert all(c.isprintable() or c == "\n" for c in shown), "a control character gets through"
    report._repr_html_().encode()


def _plain(proto: ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


# ------------------------------------------------------------------ what is fixed


@cache
def _weights() -> Caffemodel:
    content = (CORPUS / "caffemodel" / "packed.caffemodel").read_bytes()
    return read_caffemodel(content, "net.caffemodel")


def _read_onnx(data: bytes) -> OnnxModel:
    """By way of a file in memory, if the system has such a place."""
    path = Path(_folder().name) / "model.onnx"
    path.write_bytes(data)
    return read_file(path)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(
        dir=memory if memory.is_dir() else None, prefix="bnfold-fuzz-"
    )
