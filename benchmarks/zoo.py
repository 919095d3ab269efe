"""The networks of timm and torchvision, made ready to measure a fold on them.

    load_vision()                      the two libraries, imported
    create("timm:resnet50")            (model in eval mode, example input)
    randomize_statistics(model, seed)  statistics that hide no mistake

No weights are downloaded. A plain name is looked up in timm first, then in torchvision. Inputs
are as small as the network allows: 96 pixels leave 3 x 3 at stride 32, so that every tap of a
padded kernel counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.randomize import batchnorm_modules, randomize_statistics, spread_constants
from benchmarks.vision import load_vision

__all__ = ["batchnorm_modules", "create", "load_vision", "randomize_statistics"]

_SMALL_IMAGE = 96
_TORCHVISION_IMAGE = {"inception_v3": 128, "maxvit_t": 224}
_CALIBRATION_BATCH = 8
"""Statistics of fewer images are too narrow: on other images a deep network would explode."""
_VIDEO = (3, 8, 64, 64)  # channels, frames, height, width


def create(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    image: int | None = None,
    batch: int = 2,
    **options: Any,
) -> tuple[nn.Module, Tensor]:
    """A network with random weights and statistics, in eval mode, and an input for it.

    Args:
        name: "timm:resnet50", "torchvision:resnet50", a detector's image half as in
            "torchvision:fasterrcnn_resnet50_fpn.backbone", or a plain name.
        seed: the same seed gives the same network and input, in every dtype.
        dtype: of the weights and the input.
        image: height and width; left out, the smallest that the network takes without loss.
        batch: how many images.
        options: for timm's `create_model`: other numbers of blocks, say.

    Raises:
        LookupError: neither library has such a network.
    """
    library, model_name = _resolve(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "timm":
            model, size = _create_timm(model_name, **options)
        else:
            model, size = _create_torchvision(model_name)
    if image is not None:
        size = (*size[:-2], image, image)
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn((batch, *size), generator=generator, dtype=torch.float64)
    others = torch.randn((_CALIBRATION_BATCH, *size), generator=generator, dtype=torch.float64)
    spread_constants(model, seed)
    randomize_statistics(model, seed, inputs=others)
    return model.to(dtype), example.to(dtype)


def _resolve(name: str) -> tuple[str, str]:
    library, colon, model_name = name.partition(":")
    if colon and library in ("timm", "torchvision"):
        return library, model_name
    vision = load_vision()
    if vision.timm.is_model(name):
        return "timm", name
    if name in vision.torchvision.models.list_models() or name in _backbones():
        return "torchvision", name
    raise LookupError(f"neither timm nor torchvision has a network named {name!r}")


def _create_timm(name: str, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    model = load_vision().timm.create_model(name, pretrained=False, **options)
    configuration = model.default_cfg
    channels, *full = configuration["input_size"]
    if configuration.get("fixed_input_size"):
        return model, (channels, *full)
    smallest = configuration.get("min_input_size") or (channels, _SMALL_IMAGE, _SMALL_IMAGE)
    return model, (channels, *(max(_SMALL_IMAGE, side) for side in smallest[1:]))


def _create_torchvision(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    models = load_vision().torchvision.models
    image = _TORCHVISION_IMAGE.get(name, _SMALL_IMAGE)
    size: tuple[int, ...] = (3, image, image)
    if name in _backbones():
        return _backbones()[name](), size
    builder = models.get_model_builder(name)
    if builder.__module__.startswith(f"{models.__name__}.video"):
        size = _VIDEO
    options: dict[str, Any] = {"weights": None}
    if builder.__module__.startswith(f"{models.__name__}.segmentation"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return builder(**options), size


def _backbones() -> dict[str, Callable[[], nn.Module]]:
    """What detectors compute on the image, with the FrozenBatchNorms of trained detectors.

    The rest of a detector (boxes, non-maximum suppression) holds no BatchNorm.
    """
    detection = load_vision().torchvision.models.detection
    frozen = load_vision().torchvision.ops.misc.FrozenBatchNorm2d
    resnet = detection.backbone_utils.resnet_fpn_backbone
    mobilenet = detection.backbone_utils.mobilenet_backbone
    return {
        "fasterrcnn_resnet50_fpn.backbone": lambda: resnet(
            backbone_name="resnet50", weights=None, norm_layer=frozen, trainable_layers=0
        ),
        "retinanet_resnet50_fpn.backbone": lambda: resnet(
            backbone_name="resnet50",
            weights=None,
            norm_layer=frozen,
            trainable_layers=0,
            returned_layers=[2, 3, 4],
            extra_blocks=load_vision().torchvision.ops.feature_pyramid_network.LastLevelP6P7(
                2048, 256
            ),
        ),
        "fasterrcnn_resnet50_fpn_v2.backbone": lambda: resnet(
            backbone_name="resnet50",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=5,
        ),
        "fasterrcnn_mobilenet_v3_large_fpn.backbone": lambda: mobilenet(
            backbone_name="mobilenet_v3_large",
            weights=None,
            fpn=True,
            norm_layer=frozen,
            trainable_layers=0,
        ),
        "ssdlite320_mobilenet_v3_large.backbone": lambda: (
            detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).backbone
        ),
    }
