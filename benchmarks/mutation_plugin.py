"""A pytest plugin that runs the collected tests against mutants, each in a fork of its own.

The tests are collected, and all they import is imported, once. A first fork runs each test alone
and notes which lines of the files under test it reaches. Then, per mutant, a fork puts the changed
code into the functions that are already there, runs the tests that reach the changed lines, those
first that killed the mutants before it, and stops at the first that fails. A test that takes ten
times as long as it should kills too.

    python -m pytest -p benchmarks.mutation_plugin --mutate FILE ... TESTS
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import IO, Any

import pytest
from _pytest import runner

from benchmarks.mutants import Mutant, mutants

_MEMORY = 3 << 30
"""Bytes that a mutant may ask for beyond what is there."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The files to break, and where the results go."""
    group = parser.getgroup("mutation")
    group.addoption("--mutate", action="append", default=[], metavar="FILE")
    group.addoption("--mutate-only", default="", metavar="TEXT", help="keys that contain it")
    group.addoption("--mutate-keys", default="", metavar="FILE", help="keys, one a line")
    group.addoption("--mutate-results", default="", metavar="FILE")
    group.addoption("--mutate-workers", type=int, default=1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Take over where mutants are asked for."""
    config = session.config
    files: list[str] = config.getoption("--mutate")
    if not files:
        return None
    if session.testsfailed:
        raise pytest.UsageError(f"{session.testsfailed} errors during collection")
    trees = {file: ast.parse(Path(file).read_text()) for file in files}
    wanted = _wanted(config, [m for file, tree in trees.items() for m in mutants(tree, file)])
    _say(f"{len(wanted)} mutants, {len(session.items)} tests; which test reaches what ...")
    reaches = _in_fork(lambda: _reach_all(session.items, files))
    failing: list[str] = [
        item.nodeid for item, r in zip(session.items, reaches, strict=True) if not r["passed"]
    ]
    if failing:
        raise pytest.UsageError(f"tests that fail without a mutant: {failing}")
    campaign = _Campaign(trees, session.items, reaches, config.getoption("--mutate-workers"))
    with Path(config.getoption("--mutate-results") or os.devnull).open("w") as stream:
        campaign.run(wanted, stream)
    return True


def _say(text: str) -> None:
    print(text, file=sys.__stderr__, flush=True)


def _wanted(config: pytest.Config, found: list[Mutant]) -> list[Mutant]:
    part = config.getoption("--mutate-only")
    path = config.getoption("--mutate-keys")
    keys = set(Path(path).read_text().splitlines()) if path else None
    return [m for m in found if part in m.key and (keys is None or m.key in keys)]


def _in_fork(function: Any) -> Any:
    """What a function answers that runs in a fork, which leaves nothing behind."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _quiet()
        with os.fdopen(write, "w") as stream:
            json.dump(function(), stream)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def _quiet() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


# -- which test reaches what ---------------------------------------------------------------------


def _reach_all(items: list[pytest.Item], files: list[str]) -> list[dict[str, Any]]:
    names = {str(Path(file).resolve()): file for file in files}
    answers = []
    for item, after in itertools.zip_longest(items, items[1:]):
        lines: dict[str, set[int]] = {file: set() for file in files}
        with _traced(names, lines):
            passed = _passes(item, after)
        answers.append({"lines": {f: sorted(s) for f, s in lines.items()}, "passed": passed})
    # A second time, untraced, for the time that each takes.
    for item, after, answer in itertools.zip_longest(items, items[1:], answers):
        start = time.process_time()
        answer["passed"] = _passes(item, after) and answer["passed"]
        answer["seconds"] = time.process_time() - start
    return answers


@contextlib.contextmanager
def _traced(names: dict[str, str], lines: dict[str, set[int]]) -> Iterator[None]:
    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = names.get(frame.f_code.co_filename)
        if file is None:
            return None
        found = lines[file]
        found.add(frame.f_lineno)

        def step(inner: FrameType, event: str, argument: Any) -> Any:
            found.add(inner.f_lineno)
            return step

        return step

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


def _passes(item: pytest.Item, after: pytest.Item | None) -> bool:
    reports = runner.runtestprotocol(item, log=False, nextitem=after)
    return not any(report.failed for report in reports)


# -- mutants -------------------------------------------------------------------------------------


class _Campaign:
    """All mutants against all tests."""

    def __init__(
        self,
        trees: dict[str, ast.Module],
        items: list[pytest.Item],
        reaches: list[dict[str, Any]],
        workers: int,
    ) -> None:
        self.trees = trees
        self.items = items
        self.seconds = [reach["seconds"] for reach in reaches]
        self.workers = workers
        self.reached: dict[str, dict[int, list[int]]] = {}
        for number, reach in enumerate(reaches):
            for file, lines in reach["lines"].items():
                for line in lines:
                    self.reached.setdefault(file, {}).setdefault(line, []).append(number)
        self.killers: dict[str, Counter[int]] = {}

    def run(self, wanted: list[Mutant], results: IO[str]) -> None:
        """One result per mutant, a line of JSON each."""
        running: dict[int, tuple[int, int]] = {}
        start = time.monotonic()
        for at, mutant in enumerate(wanted):
            tests = self._tests(mutant)
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                self._child(mutant, tests, write)
            os.close(write)
            running[pid] = (at, read)
            while len(running) >= self.workers:
                self._collect(wanted, running, results)
            if at % 100 == 99:
                _say(f"  {at + 1} of {len(wanted)}, {time.monotonic() - start:.0f} s")
        while running:
            self._collect(wanted, running, results)

    def _tests(self, mutant: Mutant) -> list[int]:
        """The tests that may kill it, the most promising first."""
        lines = self.reached.get(mutant.file, {})
        if mutant.inside:
            span = range(mutant.lines[0], mutant.lines[1] + 1)
            found = {test for line in span for test in lines.get(line, ())}
        else:
            # What a file without functions holds, any test may use.
            found = {test for tests in lines.values() for test in tests}
            found = found or set(range(len(self.items)))
        killed = self.killers.get(mutant.scope, Counter())
        return sorted(found, key=lambda test: (-killed[test], self.seconds[test], test))

    def _child(self, mutant: Mutant, tests: list[int], write: int) -> None:
        """Never returns. Writes the number of the test that killed it, if one did."""
        _quiet()
        _limit(60 + int(20 * sum(self.seconds[test] for test in tests)))
        current = b"import"
        signal.signal(signal.SIGPROF, lambda *_: os._exit(_answer(write, b"t" + current)))
        signal.setitimer(signal.ITIMER_PROF, 10.0)
        try:
            install(mutant, self.trees[mutant.file])
        except Exception:
            os._exit(_answer(write, b"k-1"))
        for test, after in itertools.zip_longest(tests, tests[1:]):
            current = str(test).encode()
            signal.setitimer(signal.ITIMER_PROF, 2.0 + 10.0 * self.seconds[test])
            following = self.items[after] if after is not None else None
            try:
                fine = _passes(self.items[test], following)
            except BaseException:
                fine = False
            if not fine:
                os._exit(_answer(write, b"k" + current))
        os._exit(_answer(write, b"s"))

    def _collect(
        self,
        wanted: list[Mutant],
        running: dict[int, tuple[int, int]],
        results: IO[str],
    ) -> None:
        pid, _ = os.wait()
        if pid not in running:
            return
        at, read = running.pop(pid)
        with os.fdopen(read, "rb") as stream:
            answer = stream.read().decode() or "c"
        mutant = wanted[at]
        how = {"k": "killed", "t": "too slow", "c": "crashed", "s": "survived"}[answer[0]]
        by = None
        if answer[1:].isdigit():
            number = int(answer[1:])
            self.killers.setdefault(mutant.scope, Counter())[number] += 1
            by = self.items[number].nodeid
        result = {
            "key": mutant.key,
            "file": mutant.file,
            "line": mutant.line,
            "result": how,
            "by": by,
            "tests": len(self._tests(mutant)),
        }
        results.write(json.dumps(result) + "\n")
        results.flush()


def _answer(write: int, text: bytes) -> int:
    os.write(write, text)
    return 0


def _limit(seconds: int) -> None:
    """What the timer cannot stop, the kernel does."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# -- putting a mutant into modules that are already imported ---------------------------------------


def install(mutant: Mutant, tree: ast.Module) -> None:
    """Change the running code. Every importer sees it: functions and classes stay who they are."""
    mutant.apply()
    module = _module_of(mutant.file)
    code = compile(tree, inspect.getsourcefile(module) or mutant.file, "exec", dont_inherit=True)
    if mutant.inside:
        function = _function(module, mutant.scope)
        function.__code__ = _code(code, mutant.scope.split("."))
        _renew_defaults(module, tree, mutant.scope, function)
    else:
        _renew_names(module, code, mutant.scope)


def _module_of(file: str) -> ModuleType:
    path = str(Path(file).resolve())
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == path:
            return module
    parts = Path(file).with_suffix("").parts
    return importlib.import_module(".".join(parts[parts.index("src") + 1 :]))


def _code(code: CodeType, names: list[str]) -> CodeType:
    for name in names:
        code = next(
            part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == name
        )
    return code


def _function(module: ModuleType, scope: str) -> Any:
    found: Any = module
    for name in scope.split("."):
        found = vars(found)[name]
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    while not hasattr(found, "__code__") or hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found


def _renew_defaults(module: ModuleType, tree: ast.Module, scope: str, function: Any) -> None:
    """Defaults are no part of the code."""
    body: Any = tree
    for name in scope.split("."):
        body = next(part for part in body.body if getattr(part, "name", "") == name)
    names = vars(module)
    if body.args.defaults:
        function.__defaults__ = tuple(_value(node, names) for node in body.args.defaults)
    for argument, node in zip(body.args.kwonlyargs, body.args.kw_defaults, strict=True):
        if node is not None:
            function.__kwdefaults__[argument.arg] = _value(node, names)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<default>", "eval"), names)


def _renew_names(module: ModuleType, code: CodeType, scope: str) -> None:
    """A constant of the module, here and where it was imported; or the default of a field."""
    fresh = dict(vars(module))
    exec(code, fresh)
    name, _, field = scope.partition(".")
    if field:
        _renew_field(vars(module)[name], fresh[name], field)
        return
    old, new = vars(module)[name], fresh[name]
    for other in list(sys.modules.values()):
        if getattr(other, "__name__", "").startswith(module.__name__.split(".")[0]):
            for key, value in list(vars(other).items()):
                if value is old and key == name:
                    setattr(other, key, new)


def _renew_field(old: Any, new: Any, field: str) -> None:
    """A dataclass keeps its defaults, and what makes them, in `__init__`."""
    if dataclasses.is_dataclass(old):
        old.__init__ = new.__init__
    else:
        setattr(old, field, vars(new)[field])
