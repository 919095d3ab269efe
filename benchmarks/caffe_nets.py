"""Small nets, one per layer type and corner case: (input shapes, prototxt) by name."""

from __future__ import annotations

Net = tuple[dict[str, tuple[int, ...]], str]


def layer(kind: str, body: str = "", *, bottoms: str = "data", tops: str = "top") -> str:
    names = "".join(f'bottom: "{b}" ' for b in bottoms.split())
    names += "".join(f'top: "{t}" ' for t in tops.split())
    name = tops.split()[0] if tops else kind
    return f'layer {{ name: "{name}" type: "{kind}" {names} {body} }}\n'


def _image(*shape: int) -> dict[str, tuple[int, ...]]:
    return {"data": shape}


NETS: dict[str, Net] = {}


def _add(name: str, shapes: dict[str, tuple[int, ...]], *layers: str) -> None:
    NETS[name] = (shapes, "".join(layers))


def _one(name: str, shape: tuple[int, ...], kind: str, body: str = "", **names: str) -> None:
    _add(name, _image(*shape), layer(kind, body, **names))


_P = "pooling_param"
for _k, _s, _p, _h, _w in (
    *((2, 2, 0, 7, 6), (3, 2, 0, 8, 7), (3, 2, 1, 8, 7), (3, 2, 1, 7, 8), (3, 3, 1, 7, 7)),
    *((2, 3, 0, 7, 7), (2, 2, 1, 5, 6), (5, 4, 2, 9, 11), (3, 1, 1, 4, 5), (3, 2, 2, 5, 5)),
    *((4, 3, 3, 6, 8), (1, 2, 0, 5, 7), (3, 2, 1, 1, 1), (2, 1, 1, 3, 3), (7, 7, 0, 7, 7)),
):
    for _pool in ("MAX", "AVE"):
        _one(
            f"pool {_pool} k{_k} s{_s} p{_p} {_h}x{_w}",
            (2, 3, _h, _w),
            "Pooling",
            f"{_P} {{ pool: {_pool} kernel_size: {_k} stride: {_s} pad: {_p} }}",
        )
_one("pool AVE h w", (1, 2, 9, 8), "Pooling",
     f"{_P} {{ pool: AVE kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 3 pad_h: 0 pad_w: 1 }}")
_one("pool MAX h w", (1, 2, 9, 8), "Pooling",
     f"{_P} {{ pool: MAX kernel_h: 4 kernel_w: 2 stride_h: 3 stride_w: 2 pad_h: 2 pad_w: 0 }}")
_one("pool AVE global", (2, 3, 5, 4), "Pooling", f"{_P} {{ pool: AVE global_pooling: true }}")
_one("pool MAX global", (2, 3, 5, 4), "Pooling", f"{_P} {{ global_pooling: true }}")
_one("pool floor", (2, 3, 8, 7), "Pooling",
     f"{_P} {{ pool: AVE kernel_size: 3 stride: 2 pad: 1 ceil_mode: false }}")
_one("pool mask", (2, 3, 7, 8), "Pooling",
     f"{_P} {{ pool: MAX kernel_size: 3 stride: 2 pad: 1 }}", tops="top mask")
_C = "convolution_param"
_one("conv", (2, 3, 9, 8), "Convolution", f"{_C} {{ num_output: 5 kernel_size: 3 pad: 1 stride: 2 }}")
_one("conv group no bias", (2, 4, 9, 8), "Convolution",
     f"{_C} {{ num_output: 6 bias_term: false group: 2 kernel_h: 3 kernel_w: 2 pad_w: 1 stride_h: 2 }}")
_one("conv dilated", (1, 3, 11, 10), "Convolution",
     f"{_C} {{ num_output: 4 kernel_size: 3 dilation: 2 pad: 2 }}")
_one("conv kernel list", (1, 3, 11, 10), "Convolution",
     f"{_C} {{ num_output: 4 kernel_size: 3 kernel_size: 5 pad: 1 pad: 2 stride: 2 stride: 1 dilation: 2 }}")
_one("conv 1d", (2, 3, 11), "Convolution", f"{_C} {{ num_output: 4 kernel_size: 3 pad: 1 }}")
_one("conv 3d", (1, 3, 5, 6, 7), "Convolution", f"{_C} {{ num_output: 4 kernel_size: 3 pad: 1 stride: 2 }}")
_one("conv axis 2", (2, 3, 4, 6, 7), "Convolution", f"{_C} {{ num_output: 5 kernel_size: 3 axis: 2 }}")
_one("conv axis -3", (2, 3, 4, 6, 7), "Convolution", f"{_C} {{ num_output: 5 kernel_size: 3 axis: -3 }}")
_add("conv two bottoms", {"a": (1, 3, 6, 6), "b": (1, 3, 6, 6)},
     layer("Convolution", f"{_C} {{ num_output: 4 kernel_size: 3 }}", bottoms="a b", tops="x y"))
_one("conv depthwise", (2, 4, 6, 7), "Convolution",
     f"{_C} {{ num_output: 8 kernel_size: 3 group: 4 pad: 1 }}")
_one("deconv", (2, 3, 5, 4), "Deconvolution",
     f"{_C} {{ num_output: 5 kernel_size: 4 stride: 2 pad: 1 }}")
_one("deconv group", (2, 4, 5, 4), "Deconvolution",
     f"{_C} {{ num_output: 6 kernel_h: 3 kernel_w: 2 stride: 3 pad_h: 1 group: 2 bias_term: false }}")
_one("deconv dilated", (1, 3, 5, 4), "Deconvolution",
     f"{_C} {{ num_output: 4 kernel_size: 3 stride: 2 dilation: 2 pad: 1 }}")
_one("deconv crop", (1, 3, 5, 4), "Deconvolution",
     f"{_C} {{ num_output: 4 kernel_size: 3 stride: 1 pad: 2 }}")
_one("deconv bilinear", (1, 3, 5, 4), "Deconvolution",
     f"{_C} {{ num_output: 3 kernel_size: 4 stride: 2 pad: 1 group: 3 bias_term: false }}")
_I = "inner_product_param"
_one("inner product", (2, 3, 4, 5), "InnerProduct", f"{_I} {{ num_output: 7 }}")
_one("inner product transpose", (2, 3, 4, 5), "InnerProduct",
     f"{_I} {{ num_output: 7 transpose: true bias_term: false }}")
_one("inner product axis 2", (2, 3, 4, 5), "InnerProduct", f"{_I} {{ num_output: 7 axis: 2 }}")
_one("inner product axis -1", (2, 3, 4, 5), "InnerProduct", f"{_I} {{ num_output: 7 axis: -1 }}")
_one("inner product axis 0", (2, 3, 4), "InnerProduct", f"{_I} {{ num_output: 7 axis: 0 }}")
_B = "batch_norm_param"
_one("batch norm", (2, 3, 4, 5), "BatchNorm")
_one("batch norm eps", (2, 3, 4, 5), "BatchNorm", f"{_B} {{ eps: 0.25 }}")
_one("batch norm of batch", (2, 3, 4, 5), "BatchNorm", f"{_B} {{ use_global_stats: false }}")
_one("batch norm 2d", (4, 3), "BatchNorm")
_one("batch norm 3d", (4, 3, 5), "BatchNorm")
_S = "scale_param"
_one("scale", (2, 3, 4, 5), "Scale")
_one("scale bias", (2, 3, 4, 5), "Scale", f"{_S} {{ bias_term: true }}")
_one("scale axes 2", (2, 3, 4, 5), "Scale", f"{_S} {{ num_axes: 2 bias_term: true }}")
_one("scale axis 2 to the end", (2, 3, 4, 5), "Scale", f"{_S} {{ axis: 2 num_axes: -1 bias_term: true }}")
_one("scale axis -1", (2, 3, 4, 5), "Scale", f"{_S} {{ axis: -1 }}")
_one("scale axis 0", (2, 3, 4, 5), "Scale", f"{_S} {{ axis: 0 num_axes: 2 }}")
_one("scale scalar", (2, 3, 4, 5), "Scale", f"{_S} {{ num_axes: 0 bias_term: true }}")
_add("scale gate", {"a": (2, 3, 4, 5), "b": (2, 3)},
     layer("Scale", f"{_S} {{ axis: 0 }}", bottoms="a b"))
_add("scale gate bias", {"a": (2, 3, 4, 5), "b": (3,)},
     layer("Scale", f"{_S} {{ bias_term: true }}", bottoms="a b"))
_add("scale gate whole", {"a": (2, 3, 4, 5), "b": (2, 3, 4, 5)},
     layer("Scale", f"{_S} {{ axis: 0 }}", bottoms="a b"))
_one("bias", (2, 3, 4, 5), "Bias")
_one("bias axis", (2, 3, 4, 5), "Bias", "bias_param { axis: 2 num_axes: 2 }")
_add("bias second bottom", {"a": (2, 3, 4, 5), "b": (3, 4)}, layer("Bias", bottoms="a b"))
_one("prelu", (2, 3, 4, 5), "PReLU")
_one("prelu shared", (2, 3, 4, 5), "PReLU", "prelu_param { channel_shared: true }")
_one("prelu 2d", (2, 3), "PReLU")
for _kind in ("ReLU", "ReLU6", "ELU", "AbsVal", "Sigmoid", "TanH", "BNLL", "Dropout", "Threshold", "Softmax", "MVN"):
    _one(_kind.lower(), (2, 3, 4, 5), _kind)
_one("relu leaky", (2, 3, 4, 5), "ReLU", "relu_param { negative_slope: 0.1 }")
_one("relu6 leaky", (2, 3, 4, 5), "ReLU6", "relu6_param { negative_slope: 0.1 threshold: 0.5 }")
_one("elu alpha", (2, 3, 4, 5), "ELU", "elu_param { alpha: 0.3 }")
_one("softmax axis", (2, 3, 4, 5), "Softmax", "softmax_param { axis: -1 }")
_one("threshold", (2, 3, 4, 5), "Threshold", "threshold_param { threshold: 0.4 }")
_one("mvn across", (2, 3, 4, 5), "MVN", "mvn_param { across_channels: true eps: 0.1 }")
_one("mvn mean", (2, 3, 4, 5), "MVN", "mvn_param { normalize_variance: false }")
_one("power", (2, 3, 4, 5), "Power", "power_param { scale: -0.5 shift: 2 }")
_one("power square", (2, 3, 4, 5), "Power", "power_param { power: 2 scale: 0.5 shift: 2 }")
_one("power fraction", (2, 3, 4, 5), "Power", "power_param { power: 0.5 scale: 0.1 shift: 2 }")
_one("power 0", (2, 3, 4, 5), "Power", "power_param { power: 0 }")
_one("power scale 0", (2, 3, 4, 5), "Power", "power_param { power: 3 scale: 0 shift: 2 }")
_one("exp", (2, 3, 4, 5), "Exp")
_one("exp base", (2, 3, 4, 5), "Exp", "exp_param { base: 3 scale: 0.5 shift: 0.25 }")
_one("log", (2, 3, 4, 5), "Log", "log_param { base: 3 scale: 0.1 shift: 4 }")
for _op in ("SUM", "ASUM", "SUMSQ", "MEAN"):
    _one(f"reduction {_op}", (2, 3, 4, 5), "Reduction", f"reduction_param {{ operation: {_op} axis: 2 coeff: 0.5 }}")
_one("reduction all", (2, 3, 4, 5), "Reduction")
_one("argmax", (2, 3, 4, 5), "ArgMax")
_one("argmax axis", (2, 3, 4, 5), "ArgMax", "argmax_param { axis: 1 top_k: 2 }")
_one("argmax values", (2, 3, 4, 5), "ArgMax", "argmax_param { out_max_val: true top_k: 3 }")
_one("argmax axis values", (2, 3, 4, 5), "ArgMax", "argmax_param { axis: 2 out_max_val: true }")
_ab = {"a": (2, 3, 4, 5), "b": (2, 3, 4, 5)}
_add("eltwise", _ab, layer("Eltwise", bottoms="a b"))
_add("eltwise coeff", _ab, layer("Eltwise", "eltwise_param { coeff: 0.5 coeff: -2 }", bottoms="a b"))
_add("eltwise prod", _ab, layer("Eltwise", "eltwise_param { operation: PROD }", bottoms="a b"))
_add("eltwise max", {**_ab, "c": (2, 3, 4, 5)}, layer("Eltwise", "eltwise_param { operation: MAX }", bottoms="a b c"))
_add("concat", {"a": (2, 3, 4, 5), "b": (2, 2, 4, 5)}, layer("Concat", bottoms="a b"))
_add("concat axis", {"a": (2, 3, 4, 5), "b": (2, 3, 4, 2)}, layer("Concat", "concat_param { axis: -1 }", bottoms="a b"))
_add("concat dim", {"a": (2, 3, 4, 5), "b": (1, 3, 4, 5)}, layer("Concat", "concat_param { concat_dim: 0 }", bottoms="a b"))
_one("slice", (2, 6, 4, 5), "Slice", tops="x y z")
_one("slice points", (2, 6, 4, 5), "Slice", "slice_param { axis: 1 slice_point: 1 slice_point: 3 }", tops="x y z")
_one("slice dim", (2, 6, 4, 5), "Slice", "slice_param { slice_dim: 2 slice_point: 3 }", tops="x y")
_one("split", (2, 6, 4, 5), "Split", tops="x y")
_one("flatten", (2, 3, 4, 5), "Flatten")
_one("flatten axes", (2, 3, 4, 5), "Flatten", "flatten_param { axis: 0 end_axis: -2 }")
_one("reshape", (2, 3, 4, 5), "Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 5 dim: 2 } }")
_one("reshape axis", (2, 3, 4, 5), "Reshape", "reshape_param { shape { dim: 2 dim: -1 } axis: 2 num_axes: 1 }")
_one("reshape negative axis", (2, 3, 4, 5), "Reshape", "reshape_param { shape { dim: 1 dim: 1 } axis: -1 num_axes: 0 }")
_one("reshape copies", (2, 3, 4, 5), "Reshape", "reshape_param { shape { dim: 0 dim: 4 dim: -1 } axis: 1 num_axes: 2 }")
_one("permute", (2, 3, 4, 5), "Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }")
_one("permute rest", (2, 3, 4, 5), "Permute", "permute_param { order: 2 }")
_one("tile", (2, 3, 4, 5), "Tile", "tile_param { axis: 2 tiles: 3 }")
_add("crop", {"a": (2, 3, 9, 8), "b": (2, 3, 5, 6)}, layer("Crop", "crop_param { offset: 2 }", bottoms="a b"))
_add("crop offsets", {"a": (2, 3, 9, 8), "b": (2, 2, 5, 6)},
     layer("Crop", "crop_param { axis: 1 offset: 1 offset: 3 offset: 0 }", bottoms="a b"))
_one("lrn", (2, 7, 4, 5), "LRN", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.7 k: 2 }")
_one("lrn default", (2, 7, 4, 5), "LRN")
_one("lrn within", (2, 7, 6, 5), "LRN", "lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }")
_one("normalize", (2, 7, 4, 5), "Normalize")
_one("normalize channels", (2, 7, 4, 5), "Normalize", "norm_param { across_spatial: false channel_shared: false eps: 0.01 }")
_one("upsample", (2, 3, 4, 5), "Upsample", "upsample_param { scale: 3 }")
_BOX = {"data": (1, 4, 3, 5), "image": (1, 3, 30, 50)}
_add("prior box", _BOX, layer("PriorBox", """prior_box_param { min_size: 6 max_size: 11 aspect_ratio: 2
     aspect_ratio: 3 flip: true clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 }""", bottoms="data image"))
_add("prior box step", _BOX, layer("PriorBox", """prior_box_param { min_size: 6 min_size: 12 aspect_ratio: 2
     flip: false clip: true step: 9 offset: 0.3 }""", bottoms="data image"))
_add("in place chain", _image(2, 3, 9, 9),
     layer("Convolution", f"{_C} {{ num_output: 5 kernel_size: 3 bias_term: false }}", tops="conv"),
     layer("BatchNorm", bottoms="conv", tops="conv").replace('name: "conv"', 'name: "bn"'),
     layer("Scale", f"{_S} {{ bias_term: true }}", bottoms="conv", tops="conv").replace('name: "conv"', 'name: "sc"'),
     layer("ReLU", bottoms="conv", tops="conv").replace('name: "conv"', 'name: "relu"'),
     layer("Pooling", f"{_P} {{ kernel_size: 2 stride: 2 }}", bottoms="conv", tops="pool"))
