"""The demo: fold a trained network, show that it computes the same, and save it.

The verdict has two parts, and both must hold: in float32 every held-out image gets the prediction
it had, and in float64, where rounding hides nothing, the logits agree to `FLOAT64_BOUND`. The
network is judged as it lies on disk: the program is read back before it is compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bnfold
from bnfold.demo.compare import Difference, accuracy, logits_of
from bnfold.demo.data import Digits, load_digits_split
from bnfold.demo.latency import measure
from bnfold.demo.network import DigitsNet, digits_net

FLOAT64_BOUND = 1e-9
PROGRAM_FILE = "digits_net_folded.pt2"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"


def main(output_dir: Path) -> int:
    """Run the demo, write into `output_dir`; 0 if the folded network computes the same, else 1."""
    digits = load_digits_split()
    net = digits_net()
    folded, report = bnfold.fold(net, digits.images[:1])
    print(report)

    output_dir.mkdir(parents=True, exist_ok=True)
    program_path, report_path = output_dir / PROGRAM_FILE, output_dir / REPORT_FILE
    page_path = output_dir / PAGE_FILE
    write_whole(program_path, lambda path: save_program(folded, digits.images, path))
    write_whole(report_path, lambda path: path.write_text(report.to_json() + "\n"))
    hashes = {f"written: {PROGRAM_FILE}": hashlib.sha256(program_path.read_bytes()).hexdigest()}
    page = report.to_html(title="The demo's network", hashes=hashes)
    write_whole(page_path, lambda path: path.write_text(page, encoding="utf-8"))

    same = is_same(net, folded, program_path, digits)
    print()
    for images in (digits.images[:1], digits.images):
        print(f"latency, batch {len(images):<8}{measure(net, folded, images)}")
    print()
    print(f"folded network         {program_path}")
    print(f"report                 {report_path}")
    print(f"the same as a page     {page_path}")
    print()
    print("The folded network computes the same." if same else "NOT the same.")
    return 0 if same else 1


def is_same(net: DigitsNet, folded: nn.Module, program_path: Path, digits: Digits) -> bool:
    """Print how the networks compare on the held-out digits; whether they compute the same."""
    before = logits_of(net, digits.images)
    after = logits_of(folded, digits.images)
    saved = logits_of(torch.export.load(program_path).module(), digits.images)
    exact = float64_difference(digits)
    changed, changed_saved = changed_predictions(before, after), changed_predictions(before, saved)

    print()
    print(f"held-out images        {len(digits.labels)}")
    print(f"accuracy               {percent(before, digits)} -> {percent(after, digits)}")
    print(f"changed predictions    {changed}, as saved {changed_saved}")
    print(f"logits, float32        {Difference.between(before, after)}")
    print(f"logits, as saved       {Difference.between(before, saved)}")
    print(f"logits, float64        {exact}")
    return changed == changed_saved == 0 and exact.relative < FLOAT64_BOUND


def float64_difference(digits: Digits) -> Difference:
    """The same fold on the same network in float64."""
    images = digits.images.double()
    net = digits_net().double()
    folded, _ = bnfold.fold(net, images[:1])
    return Difference.between(logits_of(net, images), logits_of(folded, images))


def changed_predictions(before: Tensor, after: Tensor) -> int:
    """How many rows of two (N, 10) have their largest logit in different places."""
    return int((before.argmax(1) != after.argmax(1)).sum())


def percent(logits: Tensor, digits: Digits) -> str:
    """The accuracy, for people."""
    return f"{accuracy(logits, digits.labels):.2%}"


def save_program(net: nn.Module, images: Tensor, path: Path) -> None:
    """Export the network for any number of images (N, 1, 8, 8)."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside `path`, then move it there: whole or not at all."""
    # The suffix stays last: torch.export.save asks for .pt2.
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
