"""The mutation check finds a planted survivor, and that everything else is killed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

from benchmarks.mutants import mutants

SOURCE = """
def slope(x, y):
    return x / y


def never_tested(x):
    return x + 1
"""
TESTS = """
from planted import never_tested, slope


def test_slope():
    assert slope(6.0, 3.0) == 2.0


def test_nothing():
    never_tested(1)
"""


def test_a_planted_survivor_is_found(tmp_path):
    (tmp_path / "planted.py").write_text(SOURCE)
    (tmp_path / "test_planted.py").write_text(TESTS)
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.mutation_plugin", "-n", "0"]
    command += ["--rootdir", str(tmp_path), "-o", f"pythonpath={tmp_path}", str(tmp_path)]
    command += ["--mutate", str(tmp_path / "planted.py"), "--mutate-results", str(results)]
    subprocess.run(command, check=False, capture_output=True)
    found = [json.loads(line) for line in results.read_text().splitlines()]
    by_scope = {scope: [r for r in found if f":{scope}:" in r["key"]] for scope in SCOPES}
    assert {r["result"] for r in by_scope["slope"]} == {"killed"}
    assert {r["result"] for r in by_scope["never_tested"]} == {"survived"}


SCOPES = ("slope", "never_tested")


def test_what_is_broken():
    def changes(text: str) -> set[str]:
        return {mutant.after for mutant in mutants(ast.parse(text), "x.py")}

    assert {"a - b", "a", "b"} <= changes("x = a + b")
    assert {"a <= b", "a > b"} <= changes("x = a < b")
    assert {"a or b", "a", "b"} <= changes("x = a and b")
    assert "f(b, a)" in changes("x = f(a, b)")
    assert "np.maximum(a, b)" in {c for c in changes("x = np.minimum(a, b)") if "(" in c} or (
        "np.maximum" in changes("x = np.minimum(a, b)")
    )
    assert not changes('"""A text."""\nassert a + b')
