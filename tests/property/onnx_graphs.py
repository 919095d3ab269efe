"""Random ONNX models in float64, over all roles: small, seeded, and as awkward as files can be.

Statistics are random per channel, gammas may be negative or zero, weights and constants are shared
now and then, values have several readers, some are graph outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
Array = NDArray[Any]


class Builder:
    """Adds nodes at random; every value it knows can be read by what comes later."""

    def __init__(
        self,
        seed: int,
        *,
        opset: int = 17,
        data_type: int = TensorProto.DOUBLE,
        batch: int = 2,
        wide: bool = True,
    ) -> None:
        self.batch = batch
        self.wide = wide
        """With control flow and integers, which not every evaluator takes in every dtype."""
        self.has_open_space = False
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.data_type = data_type
        self.dtype = helper.tensor_dtype_to_np_dtype(data_type)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.values: dict[str, Shape] = {}
        self.weights: dict[str, Shape] = {}
        self.count = 0

    # ---------------------------------------------------------------- parts

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, array: Any, stem: str = "k") -> str:
        """An initializer or, sometimes, a Constant node."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        name = self.name(stem)
        tensor = numpy_helper.from_array(array, name)
        if self.rng.random() < 0.15:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, shape: Shape) -> str:
        """A weight, sometimes one that another op has already."""
        same = [name for name, other in self.weights.items() if other == shape]
        if same and self.rng.random() < 0.3:
            return str(self.rng.choice(same))
        name = self.constant(self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])), "w")
        self.weights[name] = shape
        return name

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        name = self.name("v")
        label = self.name(op) if self.rng.random() < 0.9 else ""
        self.nodes.append(helper.make_node(op, inputs, [name], name=label, **attributes))
        self.values[name] = shape
        return name

    def pick(self, test: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """A value, more often one that nobody has read yet."""
        names = [name for name, shape in self.values.items() if test(shape)]
        if not names:
            return None
        read = {name for node in self.nodes for name in node.input}
        unread = [name for name in names if name not in read]
        return str(self.rng.choice(unread if unread and self.chance(0.8) else names))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    # ---------------------------------------------------------------- ops

    def batch_norm(self, x: str) -> str:
        shape = self.values[x]
        channels = shape[1]
        gamma = self.rng.uniform(0.5, 2, channels) * np.where(
            self.rng.random(channels) < 0.3, -1, 1
        )
        if self.chance(0.15):
            gamma[self.rng.integers(channels)] = 0.0
        names = [
            self.constant(gamma, "g"),
            self.constant(self.rng.normal(size=channels), "b"),
            self.constant(self.rng.normal(size=channels), "m"),
            self.constant(self.rng.uniform(0.3, 2, channels), "s"),
        ]
        return self.add("BatchNormalization", [x, *names], shape, epsilon=1e-3)

    def conv(self, x: str) -> str | None:
        n, c, h, w = self.values[x]
        kernel = int(self.rng.choice([1, 1, 2, 3]))
        pad = int(self.rng.integers(0, 2)) if kernel == 3 else 0
        if kernel > min(h, w) + 2 * pad:
            return None
        groups = int(self.rng.choice([g for g in (1, 1, 2, c) if c % g == 0]))
        out = groups * int(self.rng.integers(1, 3)) if groups > 1 else int(self.rng.integers(1, 5))
        names = [x, self.weight((out, c // groups, kernel, kernel))]
        if self.chance(0.5):
            names.append(self.constant(self.rng.normal(size=out), "b"))
        shape = (n, out, h + 2 * pad - kernel + 1, w + 2 * pad - kernel + 1)
        return self.add("Conv", names, shape, group=groups, pads=[pad] * 4)

    def conv_transpose(self, x: str) -> str | None:
        n, c, h, w = self.values[x]
        if h > 12:
            return None
        kernel = int(self.rng.choice([1, 2]))
        stride = kernel if self.chance(0.5) else 1
        groups = int(self.rng.choice([g for g in (1, 2) if c % g == 0]))
        per_group = int(self.rng.integers(1, 3))
        names = [x, self.weight((c, per_group, kernel, kernel))]
        if self.chance(0.4):
            names.append(self.constant(self.rng.normal(size=per_group * groups), "b"))
        size = [(length - 1) * stride + kernel for length in (h, w)]
        shape = (n, per_group * groups, *size)
        return self.add("ConvTranspose", names, shape, group=groups, strides=[stride] * 2)

    def per_channel(self, x: str) -> str:
        """Arithmetic with constants, of channels or one for all."""
        shape = self.values[x]
        channels = 1 if self.chance(0.25) else shape[1]
        layout = (channels,) + (1,) * (len(shape) - 2)
        if self.chance(0.5):
            layout = (1, *layout)
        c = self.constant(self.rng.normal(size=layout) + 0.1, "c")
        op = str(self.rng.choice(["Add", "Sub", "Mul", "Div"]))
        names = [x, c] if op == "Div" or self.chance(0.6) else [c, x]
        return self.add(op, names, shape)

    def activation(self, x: str) -> str:
        shape = self.values[x]
        op = str(
            self.rng.choice(
                ["Relu"] * 6 + ["LeakyRelu", "PRelu", "Abs", "Sigmoid", "Neg", "Clip", "Clip"]
            )
        )
        names = [x]
        if op == "PRelu":
            slope = self.rng.uniform(0.1, 0.5, (shape[1],) + (1,) * (len(shape) - 2))
            names.append(self.constant(slope, "p"))
        if op == "Clip":
            low, high = (0.0, 6.0) if self.chance(0.5) else (-1.0, 1.5)
            names += [self.constant(low, "lo"), self.constant(high, "hi")]
        return self.add(op, names, shape)

    def pool(self, x: str) -> str | None:
        n, c, h, w = self.values[x]
        op = str(
            self.rng.choice(
                ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"]
            )
        )
        if op.startswith("Global"):
            return self.add(op, [x], (n, c, 1, 1))
        if op == "ReduceMean":
            keep = int(self.rng.integers(0, 2))
            shape = (n, c, 1, 1) if keep else (n, c)
            return self.add(op, [x], shape, axes=[2, 3], keepdims=keep)
        if min(h, w) < 3:
            return None
        pad = int(self.rng.integers(0, 2))
        size = [(length + 2 * pad - 2) // 2 + 1 for length in (h, w)]
        options = {"count_include_pad": int(self.rng.integers(0, 2))} if op[0] == "A" else {}
        return self.add(
            op, [x], (n, c, *size), kernel_shape=[2, 2], strides=[2, 2], pads=[pad] * 4, **options
        )

    def joint(self, x: str) -> str | None:
        shape = self.values[x]
        y = self.pick(lambda other: other == shape)
        if y is None:
            return None
        op = str(self.rng.choice(["Add", "Add", "Add", "Sub", "Sum", "Mul", "Concat", "Mean"]))
        if op == "Concat":
            if shape[1] > 12:
                return None
            return self.add(op, [x, y], (shape[0], 2 * shape[1], *shape[2:]), axis=1)
        return self.add(op, [x, y], shape)

    def view(self, x: str) -> str | None:
        n, c, *space = self.values[x]
        kind = int(self.rng.integers(8))
        if kind == 0 and c % 2 == 0 and space:  # channel shuffle
            target = self.constant(np.array([n, 2, c // 2, *space]), "t")
            cut = self.add("Reshape", [x, target], (n, 2, c // 2, *space))
            perm = [0, 2, 1, *range(3, 3 + len(space))]
            turned = self.add("Transpose", [cut], (n, c // 2, 2, *space), perm=perm)
            back = self.constant(np.array([0, -1, *space]), "t")
            del self.values[cut], self.values[turned]
            return self.add("Reshape", [turned, back], (n, c, *space))
        if kind == 1 and c > 1:
            at = int(self.rng.integers(1, c))
            names = [self.name("v"), self.name("v")]
            sizes = self.constant(np.array([at, c - at]), "t")
            self.nodes.append(helper.make_node("Split", [x, sizes], names, axis=1))
            self.values[names[0]], self.values[names[1]] = (n, at, *space), (n, c - at, *space)
            return names[0]
        if kind == 2 and c > 1:
            parts = [self.constant(np.array(v), "t") for v in ([1], [c], [1])]
            return self.add("Slice", [x, *parts], (n, c - 1, *space))
        if kind == 3:
            indices = self.rng.permutation(c)
            return self.add("Gather", [x, self.constant(indices, "t")], (n, c, *space), axis=1)
        if kind == 4 and len(space) == 2 and min(space) > 1:
            pads = self.constant(np.array([0, 0, 1, 0, 0, 0, 0, 1]), "t")
            names = [x, pads]
            if self.chance(0.5):
                names.append(self.constant(self.rng.choice([0.0, 0.0, 1.5]), "t"))
            mode = "constant" if len(names) > 2 else str(self.rng.choice(["reflect", "edge"]))
            return self.add("Pad", names, (n, c, space[0] + 1, space[1] + 1), mode=mode)
        if kind == 5 and len(space) == 2 and c % 4 == 0:
            return self.add(
                "DepthToSpace",
                [x],
                (n, c // 4, space[0] * 2, space[1] * 2),
                blocksize=2,
                mode=str(self.rng.choice(["DCR", "CRD"])),
            )
        if kind == 6 and len(space) == 2 and max(space) < 8:
            scales = self.constant(np.array([1, 1, 2, 2], np.float32), "t")
            self.fix_float32(scales)
            shape = (n, c, space[0] * 2, space[1] * 2)
            return self.add("Resize", [x, "", scales], shape, mode="nearest")
        return self.add("Identity", [x], (n, c, *space))

    def fix_float32(self, name: str) -> None:
        """Scales of a Resize are float32, whatever the model is."""
        for tensor in self.initializers:
            if tensor.name == name:
                array = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, name))
        for node in self.nodes:
            if node.op_type == "Constant" and node.output[0] == name:
                array = numpy_helper.to_array(node.attribute[0].t).astype(np.float32)
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(array, name))

    def matrix(self, x: str) -> str | None:
        """Something for values of rank 2, or on the last axis."""
        shape = self.values[x]
        if self.has_open_space and len(shape) == 4:
            return None
        if len(shape) == 4:
            if self.chance(0.3):
                out = int(self.rng.integers(1, 5))
                made = self.add("MatMul", [x, self.weight((shape[3], out))], (*shape[:3], out))
                if self.chance(0.5):
                    made = self.add(
                        "Add",
                        [made, self.constant(self.rng.normal(size=out), "b")],
                        self.values[made],
                    )
                return made
            return self.add("Flatten", [x], (shape[0], int(np.prod(shape[1:]))))
        if len(shape) != 2:
            return None
        out = int(self.rng.integers(1, 6))
        if self.chance(0.4):
            return self.add("MatMul", [x, self.weight((shape[1], out))], (shape[0], out))
        flip = int(self.rng.integers(0, 2))
        names = [x, self.weight((out, shape[1]) if flip else (shape[1], out))]
        options = {"transB": flip, "alpha": float(self.rng.choice([1.0, 0.5]))}
        if self.chance(0.6):
            layout = (out,) if self.chance(0.6) else (1, out)
            names.append(self.constant(self.rng.normal(size=layout), "b"))
            options["beta"] = float(self.rng.choice([1.0, 2.0, 0.0]))
        return self.add("Gemm", names, (shape[0], out), **options)

    def gated(self, x: str) -> str | None:
        """Squeeze and excite, or the same added: operands of different shapes."""
        n, c, *space = self.values[x]
        if len(space) != 2:
            return None
        pool = str(self.rng.choice(["GlobalAveragePool", "GlobalMaxPool"]))
        small = self.add(pool, [x], (n, c, 1, 1))
        if self.chance(0.5):
            small = self.batch_norm(small)
        if self.chance(0.5):
            small = self.add(str(self.rng.choice(["Sigmoid", "Relu"])), [small], (n, c, 1, 1))
        op = str(self.rng.choice(["Mul", "Add", "Sub"]))
        names = [x, small] if self.chance(0.5) else [small, x]
        return self.add(op, names, self.values[x])

    def with_constant(self, x: str) -> str | None:
        """A constant beside an activation in a concat or sum."""
        n, c, *space = self.values[x]
        if c > 12 or self.has_open_space:
            return None
        value = self.rng.normal(size=(n, 1, *space)) * self.rng.integers(0, 2)
        if self.chance(0.5):
            names = [x, self.constant(value)]
            return self.add("Concat", names, (n, c + 1, *space), axis=1)
        y = self.pick(lambda other: other == self.values[x])
        assert y is not None
        return self.add("Sum", [x, self.constant(value), y], self.values[x])

    def channels_last(self, x: str) -> str | None:
        """(N, C, H, W) -> (N, H, W, C), a matrix, and back."""
        n, c, *space = self.values[x]
        if len(space) != 2:
            return None
        out = int(self.rng.integers(1, 5))
        at = self.add("Transpose", [x], (n, *space, c), perm=[0, 2, 3, 1])
        if self.chance(0.3):
            at = self.add("Mul", [at, self.constant(self.rng.normal(size=c), "c")], (n, *space, c))
        at = self.add("MatMul", [at, self.weight((c, out))], (n, *space, out))
        if self.chance(0.6):
            names = [at, self.constant(self.rng.normal(size=out), "b")]
            at = self.add("Add", names if self.chance(0.5) else names[::-1], (n, *space, out))
        if self.chance(0.3):
            at = self.activation(at) if self.values[at][1] == self.values[at][3] else at
        return self.add("Transpose", [at], (n, out, *space), perm=[0, 3, 1, 2])

    def stacked(self, x: str) -> str:
        """An axis more, something, and the axis gone."""
        shape = self.values[x]
        axis = int(self.rng.integers(0, len(shape) + 1))
        axes = self.constant(np.array([axis]), "t")
        at = self.add("Unsqueeze", [x, axes], (*shape[:axis], 1, *shape[axis:]))
        if self.chance(0.5):
            at = self.add("LeakyRelu" if self.chance(0.5) else "Relu", [at], self.values[at])
        if self.chance(0.3):
            at = self.add("Concat", [at, at], (*shape[:axis], 2, *shape[axis:]), axis=axis)
            return self.add("ReduceMax", [at], shape, axes=[axis], keepdims=0)
        return self.add("Squeeze", [at, axes], shape)

    def quantised(self, x: str) -> str | None:
        """A convolution whose weight is integers with a scale per channel."""
        n, c, *space = self.values[x]
        if len(space) != 2:
            return None
        out = int(self.rng.integers(1, 5))
        q = self.constant(self.rng.integers(-90, 90, (out, c, 1, 1)).astype(np.int8), "q")
        scale = self.constant(self.rng.uniform(0.01, 0.02, out), "s")
        weight = self.name("w")
        self.nodes.append(helper.make_node("DequantizeLinear", [q, scale], [weight], axis=0))
        names = [x, weight]
        if self.chance(0.5):
            names.append(self.constant(self.rng.normal(size=out), "b"))
        return self.add("Conv", names, (n, out, *space))

    def branch(self, x: str) -> str:
        """An If whose branches read values from outside by their names."""
        shape = self.values[x]
        y = self.pick(lambda other: other == shape) or x
        condition = self.constant(np.array(bool(self.chance(0.5))), "cond")
        graphs = {}
        for key, value in (("then_branch", x), ("else_branch", y)):
            out = self.name("inner")
            info = helper.make_tensor_value_info(out, self.data_type, None)
            node = helper.make_node("Identity", [value], [out])
            graphs[key] = helper.make_graph([node], key, [], [info])
        return self.add("If", [condition], shape, **graphs)

    # ---------------------------------------------------------------- models

    def step(self) -> None:
        x = self.pick()
        assert x is not None
        is_image = len(self.values[x]) == 4
        moves: list[Callable[[str], str | None]] = [
            *[self.batch_norm] * 6,
            *[self.activation] * 3,
            *[self.per_channel] * 2,
            *[self.joint] * 3,
            self.view,
            self.view,
            self.matrix,
            self.stacked,
            self.with_constant,
        ]
        if self.wide:
            moves += [self.quantised, self.branch]
        if is_image:
            moves += [*[self.conv] * 6, self.conv_transpose, self.pool]
            moves += [self.gated, self.channels_last]
        else:
            moves += [self.matrix] * 3
        moves[int(self.rng.integers(len(moves)))](x)

    def model(self, steps: int) -> onnx.ModelProto:
        shape = (self.batch, int(self.rng.integers(1, 5)), 6, 5)
        self.values["x"] = shape
        self.has_open_space = self.chance(0.3)
        for _ in range(steps):
            self.step()
        read = {name for node in self.nodes for name in node.input}
        ends = [name for name in self.values if name not in read and name != "x"]
        inner = [name for name in self.values if name in read and name != "x"]
        if inner and self.chance(0.3):
            ends.append(str(self.rng.choice(inner)))
        if not ends:
            ends = [self.add("Identity", ["x"], shape)]
        batch = "N" if self.chance(0.5) and not self._fixed_batch() else shape[0]
        space: list[Any] = list(shape[2:])
        if self.has_open_space and not self._fixed_batch():
            space = ["H", "W"]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", self.data_type, [batch, shape[1], *space])],
            [
                helper.make_tensor_value_info(e, self.data_type, [None] * len(self.values[e]))
                for e in ends
            ],
            self.initializers,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def _fixed_batch(self) -> bool:
        """Whether a node names the batch size, or the size of an image."""
        shapes = [t for t in self.initializers if t.name.startswith("k")]
        constants = [n for n in self.nodes if n.op_type == "Constant" and n.output[0][0] == "k"]
        named = any(node.op_type == "Reshape" for node in self.nodes)
        return named or bool(shapes) or bool(constants)
