"""What a run of a model is given: the dtypes of its inputs, and shapes that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnfold.errors import UsageError
from bnfold.frontends.onnx.nodes import Network
from bnfold.frontends.onnx.shapes import known_channels
from bnfold.frontends.onnx.tensors import FLOATS, numpy_dtype
from bnfold.verify.inputs import OTHER_SIZES
from bnfold.verify.runner import InputSpec


def fits(network: Network, name: str, spec: InputSpec) -> bool:
    """Whether the model may take an input of that shape; where not, a later check says so."""
    tensor = network.inputs[name].tensor_type
    if not tensor.HasField("shape"):
        return True
    dims = tensor.shape.dim
    return len(dims) == len(spec.shape) and all(
        dim.dim_value in (0, -1, size) for dim, size in zip(dims, spec.shape, strict=True)
    )


def spec_of(network: Network, name: str, shape: tuple[int, ...] | None) -> InputSpec:
    """An input with a shape that is known. Raises UsageError."""
    tensor = network.inputs[name].tensor_type
    step = "give its shape with --input NAME:SHAPE, or inputs={name: shape}"
    if shape is None or not tensor.elem_type:
        raise UsageError(f"the shape of the input {name!r} is not known", step)
    try:
        dtype = numpy_dtype(tensor.elem_type)
    except KeyError as error:
        raise UsageError(f"the input {name!r} has a dtype that is not known", step) from error
    if dtype.kind not in "fiub" and tensor.elem_type not in FLOATS:
        raise UsageError(
            f"the input {name!r} is no plain array of numbers", "verify models of numbers"
        )
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value == 0:  # which runtimes take at its word
            example = "x".join(str(size) for size in shape)
            raise UsageError(
                f"the input {name!r} is declared to have no elements, 0 along axis {axis}",
                f"fix its sizes with bnfold fold --fix-input {name}:{example}",
            )
    declared = None
    if tensor.HasField("shape"):
        declared = tuple(dim.dim_value or None for dim in tensor.shape.dim)
    return InputSpec(name, tuple(shape), dtype.name, None, declared)


def other_shapes(network: Network, specs: Sequence[InputSpec]) -> list[list[tuple[int, ...]]]:
    """Other sizes wherever the model leaves one open, the same for all that have one name."""
    others = [_resized(network, specs, another) for another in OTHER_SIZES]
    return [shapes for shapes in others if shapes != [spec.shape for spec in specs]]


def _resized(
    network: Network, specs: Sequence[InputSpec], another: Callable[[int, int], int]
) -> list[tuple[int, ...]]:
    symbols: dict[str, int] = {}
    shapes = []
    for spec in specs:
        known = known_channels(network, spec.name)
        dims = network.inputs[spec.name].tensor_type.shape.dim if spec.declared else ()
        shape = list(spec.shape)
        for axis, dim in enumerate(dims):
            if dim.dim_value > 0 or (axis == 1 and known):
                continue
            size = symbols.setdefault(
                dim.dim_param or f"{spec.name} {axis}", another(shape[axis], axis)
            )
            shape[axis] = size
        shapes.append(tuple(shape))
    return shapes
