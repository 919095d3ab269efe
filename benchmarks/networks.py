"""The list of networks that the coverage benchmark runs over: networks.txt, read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_LIST = Path(__file__).with_name("networks.txt")


@dataclass(frozen=True, slots=True)
class Network:
    """One line of the list."""

    name: str
    """As `benchmarks.zoo.create` takes it, with its library: "timm:resnet50"."""
    family: str
    """timm's file or torchvision's folder."""


def listed_networks() -> list[Network]:
    """All of them, in the order of the file."""
    lines = (line.split() for line in _LIST.read_text().splitlines() if not line.startswith("#"))
    return [Network(*line) for line in lines if line]


def select(names: list[str] | None) -> list[Network]:
    """The listed networks called `names`, with or without the library; all without names.

    A name that is not listed is taken as it is, so that any network can be tried.
    """
    networks = listed_networks()
    if not names:
        return networks
    chosen: list[Network] = []
    for name in names:
        found = [entry for entry in networks if name in (entry.name, entry.name.partition(":")[2])]
        chosen += found or [Network(name, "not listed")]
    return chosen
