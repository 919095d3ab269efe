"""Break every line of the laws and of the weight arithmetic on purpose; the tests must notice.

`mutants` says how, `mutation_plugin` runs the tests. What survives and changes nothing that can be
seen is explained in `mutation_survivors.txt`; any other survivor fails this command.

    python -m benchmarks.mutation              about half an hour of one processor
    python -m benchmarks.mutation laws.py      one file
    python -m benchmarks.mutation --again      last time's survivors only, after new tests
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.markdown import table

CORE = ("laws", "weights", "affine", "plan", "constants", "labels", "choose", "system", "binding")
CORE += ("window", "kernel", "expression", "expressions", "nested_sum", "merge", "siblings")
CORE += ("branches", "merge_again", "merge_within", "merged", "unmerged", "unmoved")
WORKED_THROUGH = ("laws", "weights", "affine", "plan", "constants", "labels", "binding")
WORKED_THROUGH += ("window", "kernel", "branches", "nested_sum", "merge_again", "merge_within")
WORKED_THROUGH += ("expression", "expressions", "merge", "merged", "siblings", "unmerged")
"""What runs if nothing is named: of the others, not every survivor is explained yet."""
_FILES = tuple(f"src/bnfold/core/{name}.py" for name in CORE)
_TESTS = ("tests/core",)
_RESULTS = Path("out/mutation.jsonl")
_EXPLAINED = Path(__file__).with_name("mutation_survivors.txt")


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and say 1 where a survivor has no explanation."""
    parser = argparse.ArgumentParser(description="Break the laws on purpose.")
    parser.add_argument("files", nargs="*", help="files in core; if none, those worked through")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="only what survived last time")
    parser.add_argument("--table", action="store_true", help="run nothing, show the last results")
    options = parser.parse_args(arguments)
    wanted = options.files or [f"{name}.py" for name in WORKED_THROUGH]
    files = [file for file in _FILES if Path(file).name in wanted]
    before = _read() if options.again or options.table else {}
    if not options.table:
        _run(files, options.workers, before if options.again else None)
        before |= _read()
        _write(before)
    return _report(list(before.values()))


def _run(files: list[str], workers: int, before: dict[str, Any] | None) -> None:
    _RESULTS.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "benchmarks.mutation_plugin"]
    command += ["-p", "no:cacheprovider", *_TESTS]
    command += ["--mutate-results", str(_RESULTS), "--mutate-workers", str(workers)]
    command += [f"--mutate={file}" for file in files]
    if before is not None:
        keys = _RESULTS.with_suffix(".keys")
        survivors = [key for key, result in before.items() if result["result"] == "survived"]
        keys.write_text("\n".join(survivors))
        command += ["--mutate-keys", str(keys)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, check=False)
    if finished.returncode not in (0, 5):  # 5: pytest counts no test of its own
        raise SystemExit(finished.returncode)


def _read() -> dict[str, Any]:
    if not _RESULTS.exists():
        return {}
    results = map(json.loads, _RESULTS.read_text().splitlines())
    return {result["key"]: result for result in results}


def _write(results: dict[str, Any]) -> None:
    lines = (json.dumps(result) + "\n" for result in results.values())
    _RESULTS.write_text("".join(lines))


def _report(results: list[dict[str, Any]]) -> int:
    explained = [result["key"] for result in results if _lives(result) and explanation(result)]
    alive = [result for result in results if _lives(result) and not explanation(result)]
    rows = []
    for file in sorted({result["file"] for result in results}):
        count = Counter(_column(result) for result in results if result["file"] == file)
        name = Path(file).name
        rows.append([name, str(sum(count.values())), *(str(count[c]) for c in _COLUMNS)])
    total = Counter(map(_column, results))
    rows.append(["all", str(len(results)), *(str(total[column]) for column in _COLUMNS)])
    print(table(["file", "mutants", *_COLUMNS], rows))
    for result in alive:
        print(f"survived: line {result['line']} of {result['key']}")
    unused = [p for p, _ in _explanations() if not any(_fits(k, p) for k in explained)]
    for pattern in unused:
        print(f"explains nothing here: {pattern}")
    return 1 if alive else 0


_COLUMNS = ("killed", "too slow", "crashed", "explained", "survived")


def _lives(result: dict[str, Any]) -> bool:
    return bool(result["result"] == "survived")


def _column(result: dict[str, Any]) -> str:
    return "explained" if _lives(result) and explanation(result) else str(result["result"])


def explanation(result: dict[str, Any]) -> str | None:
    """Why a survivor cannot be seen, if that is known."""
    return next((why for pattern, why in _explanations() if _fits(result["key"], pattern)), None)


def _fits(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern.replace("[", "[[]"))


def _explanations() -> list[tuple[str, str]]:
    """A line of text explains the lines with keys (`*` stands for anything) that follow it."""
    found, why = [], ""
    for line in _EXPLAINED.read_text().splitlines():
        if line.startswith("# ") or not line.strip():
            continue
        if line.startswith("    "):
            found.append((line.strip(), why))
        else:
            why = line.strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
