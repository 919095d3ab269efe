"""By what formats are told: first bytes, names in archives and folders, text, fields, suffixes.

Each table is asked from its first line to its last; the first sign that fits counts.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.formats.kinds import Format, ModelKind

NAME_ONE = "name an .onnx, .prototxt or .pt2 file, or package.module:factory"
"""What a SOURCE may be."""

ONNX = Format("an ONNX model", kind=ModelKind.ONNX_FILE)
PROTOTXT = Format("a Caffe network", kind=ModelKind.CAFFE_FILES)
PROGRAM = Format("a PyTorch exported program", kind=ModelKind.PROGRAM)
CAFFEMODEL = Format(
    "the weights of a Caffe network, without the network",
    "name the network first: bnfold fold deploy.prototxt net.caffemodel",
)

_FACTORY = "bnfold fold package.module:factory --input 1x3x224x224 -o folded.pt2"
_TO_PROGRAM = (
    "export the model with torch.export.save and fold the .pt2, or name the code that builds it:"
    f" {_FACTORY}"
)
_BEFORE = "fold the model that it was made from, then convert again"
_FROM_TENSORFLOW = "convert it with tf2onnx ({option}) and fold the .onnx"
_COMPILED = f"it is compiled for one device: {_BEFORE}"


BY_NAME = {
    ".onnx": ONNX,
    ".prototxt": PROTOTXT,
    ".caffemodel": CAFFEMODEL,
    ".pt2": PROGRAM,
}


FOLDERS = (
    (
        r"saved_model\.pb(txt)?",
        Format(
            "a TensorFlow SavedModel",
            _FROM_TENSORFLOW.format(option="python -m tf2onnx.convert --saved-model FOLDER"),
        ),
    ),
    (
        r"Manifest\.json|model\.mlmodel",
        Format("a Core ML package", _BEFORE),
    ),
    (
        r"(model|pytorch_model|diffusion_pytorch_model).*\.(safetensors|bin)(\.index\.json)?",
        Format(
            "a folder with weights of PyTorch, without the code",
            "load it with the library that wrote it (from_pretrained), then bnfold.fold the module"
            " in Python",
        ),
    ),
)


_PICKLE = Format("a pickle, which can run any code when it is loaded, so it is not", _TO_PROGRAM)

MAGIC: tuple[tuple[bytes, Format], ...] = (
    (
        rb".{4}TFL3",
        Format(
            "a TensorFlow Lite model",
            f"{_BEFORE}: fold the ONNX or PyTorch model, or convert with tf2onnx --tflite and fold"
            " the .onnx if the weights are float",
        ),
    ),
    (
        rb"\x89HDF\r\n\x1a\n",
        Format(
            "an HDF5 file, as Keras writes them (.h5)",
            "load it in Keras, model.export('model.onnx', format='onnx'), and fold the .onnx",
        ),
    ),
    (
        rb"GGUF",
        Format("a GGUF file", "language models in GGUF have no BatchNorm; nothing can be folded"),
    ),
    (rb"[fp]trt", Format("a TensorRT engine", _COMPILED)),
    (rb"RKNN", Format("an RKNN model", _COMPILED)),
    (rb"\x01HEF", Format("a Hailo executable", _COMPILED)),
    (rb".{4}ET1[0-9]", Format("an ExecuTorch program (.pte)", _BEFORE)),
    (
        rb"\x5d\x88\x76\x00",
        Format("an ncnn .param.bin", f"{_BEFORE} with pnnx or onnx2ncnn"),
    ),
    (
        rb"7767517\s",
        Format(
            "an ncnn .param",
            f"{_BEFORE} with pnnx or onnx2ncnn; ncnnoptimize folds a convolution's BatchNorm there",
        ),
    ),
    (
        rb".{7}\x00\{",
        Format(
            "a safetensors file: weights without a network",
            f"load them into the module, then bnfold.fold it in Python, or: {_FACTORY}",
        ),
    ),
    (rb"\x80[\x02-\x05]", _PICKLE),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc", Format("compressed", "unpack it first")),
    (
        rb"version https://git-lfs",
        Format("a pointer of Git LFS, not the file", "run git lfs pull where it was cloned"),
    ),
    (
        rb"\s*<(!doctype )?html",
        Format("a web page", "download the file itself, not the page about it"),
    ),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", Format("compiled code", _BEFORE)),
)


ARCHIVES = (
    (r"(^|/)archive_format$|^serialized_exported_program\.json$", PROGRAM),
    (
        r"^model\.weights\.h5$",
        Format(
            "a Keras model (.keras)",
            "load it in Keras, model.export('model.onnx', format='onnx'), and fold the .onnx",
        ),
    ),
    (
        r"(^|/)constants\.pkl$",
        Format(
            "a TorchScript archive",
            f"fold the Python module it was made from, then script or trace the result: {_FACTORY}",
        ),
    ),
    (r"(^|/)data\.pkl$", _PICKLE),
    (r"^MAR-INF/", Format("a TorchServe archive", _BEFORE)),
    (r"\.mlmodel$", Format("a Core ML package", _BEFORE)),
    (r"^model\.params$|\.dlc$", Format("a converted model", _BEFORE)),
    (
        r"\.npy$",
        Format("an .npz: arrays without a network", "name the network; arrays go with --data"),
    ),
    (r"\.(onnx|prototxt|pt2)$", Format("a zip file with a model in it", "unpack it first")),
)


_PYTHON = Format("Python source", f"name what it defines: {_FACTORY}")
TEXTS: tuple[tuple[str, Format], ...] = (
    (
        r"^\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<net\s",
        Format(
            "an OpenVINO model (.xml)",
            f"{_BEFORE}; OpenVINO's own conversion folds a convolution's BatchNorm",
        ),
    ),
    (
        r"(?m)^\s*(net|train_net|base_lr|lr_policy)\s*:",
        Format("a Caffe solver, not a network", "name the prototxt that its net: line names"),
    ),
    (
        r"(?m)^\s*node\s*:?\s*\{",
        Format(
            "a TensorFlow graph as text (.pbtxt)",
            _FROM_TENSORFLOW.format(option="--graphdef"),
        ),
    ),
    (r"(?m)^\s*(layers?|input_shape)\s*:?\s*\{|^\s*input\s*:\s*[\"']", PROTOTXT),
    (
        r"(?m)^\s*\[(net|network)\]\s*$",
        Format("a Darknet .cfg", "convert it to ONNX or Caffe, and fold that"),
    ),
    (
        r"^\s*\{\s*\"nodes\"\s*:",
        Format("an MXNet symbol (.json)", "export it with mx2onnx and fold the .onnx"),
    ),
    (
        r"^\s*\{\s*\"modelTopology\"|^\s*\{\s*\"format\"\s*:\s*\"(layers|graph)-model\"",
        Format("a TensorFlow.js model", _FROM_TENSORFLOW.format(option="--tfjs")),
    ),
    (r"^\s*[\{\[]", Format("a JSON file", NAME_ONE)),
    (r"(?m)^\s*(import|from)\s+\w+|^\s*(def|class)\s+\w+.*:\s*$", _PYTHON),
)


_ONNX_FIELDS = {(1, 0), *((n, 2) for n in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26)), (5, 0)}
"""onnx.proto, message ModelProto."""

Test = Callable[[set[tuple[int, int]]], bool]

MESSAGES: tuple[tuple[Test, Format], ...] = (
    (lambda seen: seen <= _ONNX_FIELDS and (1, 0) in seen and len(seen) > 1, ONNX),
    (  # caffe.proto, message NetParameter: layer = 100, layers = 2 (V1)
        lambda seen: (100, 2) in seen and (1, 0) not in seen,
        CAFFEMODEL,
    ),
    (  # Core ML's Model.proto: specificationVersion = 1, description = 2, a model from 200 on
        lambda seen: (1, 0) in seen and (2, 2) in seen and any(n >= 200 for n, _ in seen),
        Format("a Core ML model (.mlmodel)", _BEFORE),
    ),
    (  # graph.proto, message GraphDef: node = 1, library = 2, versions = 4
        lambda seen: (1, 2) in seen and seen <= {(1, 2), (2, 2), (3, 0), (4, 2)} and (4, 2) in seen,
        Format(
            "a frozen TensorFlow graph (.pb)",
            _FROM_TENSORFLOW.format(option="python -m tf2onnx.convert --graphdef"),
        ),
    ),
)

BY_SUFFIX = {
    suffix: file_format
    for suffixes, file_format in (
        ((".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"), _PICKLE),
        ((".engine", ".plan", ".trt"), Format("a TensorRT engine", _COMPILED)),
        ((".mnn",), Format("an MNN model", _BEFORE)),
        ((".om",), Format("a model for Ascend", _COMPILED)),
        ((".pdmodel", ".pdiparams"), Format("a Paddle model", "export it with paddle2onnx")),
        ((".pb",), Format("a TensorFlow graph", _FROM_TENSORFLOW.format(option="--graphdef"))),
        ((".weights",), Format("Darknet weights", "convert the network to ONNX, and fold that")),
        ((".params",), Format("MXNet weights", "export the network with mx2onnx")),
        ((".mlmodel",), Format("a Core ML model", _BEFORE)),
    )
    for suffix in suffixes
}
"""What has no sign of its own; asked last."""
