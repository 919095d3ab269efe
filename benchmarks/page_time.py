"""How large report pages are, and how long they take from navigation until the drawing is painted.

Needs Chromium, its driver and selenium. `python -m benchmarks.page_time` prints a table.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from selenium import webdriver

import bnfold
from benchmarks.randomize import randomize_statistics
from benchmarks.vision import load_vision
from bnfold import FoldReport
from tests.page.support import made_up, page

_ROUNDS = 5
_SHOWN = "return (performance.getEntriesByName('shown')[0] || {}).startTime"


def _reports() -> dict[str, FoldReport]:
    vision = load_vision()
    image = torch.randn(1, 3, 224, 224)
    found = {}
    for name, model in (
        ("torchvision resnet50", vision.torchvision.models.resnet50()),
        ("torchvision densenet121", vision.torchvision.models.densenet121()),
        ("timm hrnet_w18_small", vision.timm.create_model("hrnet_w18_small")),
    ):
        randomize_statistics(model.eval(), inputs=image)
        found[name] = bnfold.inspect(model, image)
    return {**found, "made up": made_up(2000)}


def _driver() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def main() -> None:
    """Print one row per network."""
    print("| network | ops | size | time |\n| :-- | --: | --: | --: |")
    driver = _driver()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        for name, report in _reports().items():
            file.write_text(page(report), "utf-8")
            times = []
            for _ in range(_ROUNDS):
                driver.get(file.as_uri())
                while (shown := driver.execute_script(_SHOWN)) is None:  # type: ignore[no-untyped-call]
                    time.sleep(0.05)
                times.append(shown / 1e3)
            assert report.network is not None
            ops = sum(node.kind not in ("input", "output") for node in report.network.before)
            size = file.stat().st_size / 1e6
            print(f"| {name} | {ops:,} | {size:.2f} MB | {statistics.median(times):.2f} s |")
    driver.quit()


if __name__ == "__main__":
    main()
