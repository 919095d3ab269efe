"""The fields that bnfold knows, per message: a layer with another one may compute anything.

Forks add an activation to a convolution (`relu: true`), padding on one side (`pad_l`), a norm of
the weight (`normalize: true`). Known are BVLC's fields, those of forks that are handled where they
are read (`hole` is DeepLab's `dilation`), and what is about speed or training alone.
https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto
"""

from __future__ import annotations

from bnfold.frontends.caffe.options import Options


def _window(*names: str) -> frozenset[str]:
    return frozenset(f"{name}{end}" for name in names for end in ("_size", "_h", "_w", ""))


WINDOW = _window("kernel", "stride", "pad", "dilation")
FILLERS = frozenset(("filler", "weight_filler", "bias_filler", "scale_filler"))
KNOWN = {
    "batch_norm_param": FILLERS
    | {"use_global_stats", "moving_average_fraction", "eps", "scale_bias", "engine"}
    | {"use_weights", "use_bias", "momentum"},
    "bias_param": FILLERS | {"axis", "num_axes"},
    "clip_param": {"min", "max"},
    "concat_param": {"axis", "concat_dim"},
    "convolution_param": WINDOW
    | FILLERS
    | _window("hole")
    | {"num_output", "bias_term", "group", "axis", "engine", "force_nd_im2col"}
    | {"cudnn_convolution_algo_seeker", "conv_algos_override"},
    "crop_param": {"axis", "offset"},
    "dropout_param": {"dropout_ratio", "scale_train", "engine"},
    "eltwise_param": {"operation", "coeff", "stable_prod_grad", "engine"},
    "flatten_param": {"axis", "end_axis"},
    "inner_product_param": FILLERS | {"num_output", "bias_term", "axis", "transpose", "engine"},
    "interp_param": {"height", "width", "zoom_factor", "shrink_factor", "pad_beg", "pad_end"},
    "permute_param": {"order"},
    "pooling_param": _window("kernel", "stride", "pad")
    | {"pool", "engine", "global_pooling", "round_mode", "ceil_mode"},
    "power_param": {"power", "scale", "shift"},
    "prelu_param": FILLERS | {"channel_shared"},
    "relu_param": {"negative_slope", "engine"},
    "reshape_param": {"shape", "axis", "num_axes"},
    "scale_param": FILLERS | {"axis", "num_axes", "bias_term"},
    "shuffle_channel_param": {"group"},
    "slice_param": {"axis", "slice_point", "slice_dim"},
}


def unknown_fields(layer: Options) -> tuple[str, ...]:
    """The fields of a layer's messages that are not known."""
    named = {field.name for field in layer.message.fields} & KNOWN.keys()
    return tuple(
        field.name
        for part in sorted(named)
        for field in layer.part(part).message.fields
        if field.name not in KNOWN[part]
    )
