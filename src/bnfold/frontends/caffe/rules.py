"""Which types of layers are lifted, and by what. All others are opaque."""

from __future__ import annotations

from bnfold.frontends.caffe import lift_affine, lift_linear, lift_views
from bnfold.frontends.caffe.lift import Lifter, Rule
from bnfold.frontends.caffe.net import Layer


def _scale(lifter: Lifter, layer: Layer) -> bool:
    one = len(layer.bottoms) == 1
    return (lift_affine.scale if one else lift_views.gate)(lifter, layer)


def _bias(lifter: Lifter, layer: Layer) -> bool:
    one = len(layer.bottoms) == 1
    return (lift_affine.bias if one else lift_views.added)(lifter, layer)


RULES: dict[str, Rule] = {
    "AbsVal": lift_views.homogeneous,
    "Axpy": lift_views.axpy,
    "BN": lift_affine.fork_bn,
    "BatchNorm": lift_affine.batch_norm,
    "Bias": _bias,
    "Clip": lift_views.clip,
    "Concat": lift_views.concat,
    "Convolution": lift_linear.convolution,
    "ConvolutionDW": lift_linear.convolution,
    "ConvolutionDepthwise": lift_linear.convolution,
    "Crop": lift_views.crop,
    "Deconvolution": lift_linear.convolution,
    "DepthwiseConvolution": lift_linear.convolution,
    "Dropout": lift_views.dropout,
    "Eltwise": lift_views.eltwise,
    "Flatten": lift_views.reshape,
    "InnerProduct": lift_linear.inner_product,
    "Interp": lift_views.interp,
    "PReLU": lift_views.homogeneous,
    "Permute": lift_views.permute,
    "Pooling": lift_views.pooling,
    "Power": lift_affine.power,
    "ReLU": lift_views.relu,
    "ReLU6": lift_views.relu6,
    "Reshape": lift_views.reshape,
    "Scale": _scale,
    "ShuffleChannel": lift_views.shuffle_channels,
    "Silence": lift_views.silence,
    "Slice": lift_views.slice_,
    "Split": lift_views.identity,
}
