"""Coverage-guided fuzzing with Atheris: `python -m tests.fuzz prototxt --runs 1000000 --seed 1`.

New inputs stay in a temporary folder (`--keep` names another); what goes wrong is written to
`--artifacts`, and belongs into the corpus, where the tests replay it. An execution may take 10
seconds and 2 GB. The last line is a record of the run, in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bnfold"]):
    from tests.fuzz import targets
from tests.fuzz import mutate

MUTATORS = {
    "prototxt": mutate.text,
    "caffemodel": mutate.caffemodel,
    "onnx": mutate.onnx,
    "caffe": mutate.caffe(targets.SEPARATOR),
    "onnx-fold": mutate.onnx,
}
_PLAIN = 0.1
"""The share of mutations that are libFuzzer's own, blind to any form."""
_TIMEOUT, _MEMORY, _LONGEST = 10, 2048, 4096
"""Seconds and megabytes that an execution may take; bytes of the longest input."""


def main() -> None:
    """Run one target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; 0: never")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that were found")
    parser.add_argument("--artifacts", type=Path, default=Path("out/fuzz"))
    arguments = parser.parse_args()
    found = arguments.keep or Path(tempfile.mkdtemp(prefix="bnfold-fuzz-"))
    for folder in (found, arguments.artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    run = targets.TARGETS[arguments.target]
    mutator = MUTATORS[arguments.target]
    rng = random.Random()

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng.seed(seed)
        if rng.random() < _PLAIN:
            return bytes(atheris.Mutate(data, max_size))
        return mutator(data, rng)[:max_size]

    options = [
        sys.argv[0],
        *(f"-runs={arguments.runs}", f"-seed={arguments.seed}", f"-max_len={_LONGEST}"),
        *(f"-timeout={_TIMEOUT}", f"-rss_limit_mb={_MEMORY}", f"-malloc_limit_mb={_MEMORY}"),
        *("-print_final_stats=1", "-reload=0", "-len_control=0"),
        f"-max_total_time={arguments.seconds}",
        f"-artifact_prefix={arguments.artifacts}/{arguments.target}-",
        str(found),
        str(next(targets.corpus(arguments.target)).parent),
    ]
    record = {"target": arguments.target, "seed": arguments.seed, "atheris": "3.0.0"}
    print(json.dumps(record), flush=True)
    atheris.Setup(options, run, custom_mutator=change)
    atheris.Fuzz()  # it does not come back


if __name__ == "__main__":
    main()
