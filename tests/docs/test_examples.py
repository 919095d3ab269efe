"""The documentation says what is so: its Python runs, prints what it says, and its links lead on.

```python     is run; the blocks of one page share one namespace and a temporary folder
```text       right behind it is what the block prints, to the letter
<!-- not run -->   on the line before a block exempts it
<!-- run with NAME -->   there runs it where that package is installed
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.vision import load_vision

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "<!-- not run -->"
RUN_WITH = re.compile(r"<!-- run with (\w+) -->")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# -------------------------------------------------------------------- reading a page


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    code: str
    line: int
    """Number of its first line of content, from 1."""
    before: str
    """The last line before it that is not empty, or "" if that ends another block."""
    follows: int | None
    """Index of the block right before it, with at most empty lines between."""


def read(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a page, and the page without them."""
    blocks: list[Block] = []
    prose: list[str] = []
    lines = text.splitlines()
    at, before, last = 0, "", None
    while at < len(lines):
        fence = re.match(r"( *)(```+)(\w*)", lines[at])
        if fence is None:
            prose.append(lines[at])
            if lines[at].strip():
                before, last = lines[at].strip(), None
            at += 1
            continue
        indent, ticks, language = fence.groups()
        end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == ticks), None)
        assert end is not None, f"the block that begins on line {at + 1} has no end"
        code = "".join(line.removeprefix(indent) + "\n" for line in lines[at + 1 : end])
        blocks.append(Block(language, code, at + 2, before, last))
        at, before, last = end + 1, "", len(blocks) - 1
    return blocks, "\n".join(prose)


def is_run(block: Block) -> bool:
    if block.language != "python" or block.before == NOT_RUN:
        return False
    wanted = RUN_WITH.fullmatch(block.before)
    return wanted is None or find_spec(wanted[1]) is not None


# -------------------------------------------------------------------- running it


@contextlib.contextmanager
def namespace(name: str) -> Iterator[ModuleType]:
    """A module that exists while the page runs: pickle looks classes up in it."""
    module = ModuleType(name)
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]


def check_examples(text: str, name: str) -> int:
    """Run the blocks of a page; returns how many outputs were compared."""
    blocks, _ = read(text)
    printed: dict[int, str] = {}
    compared = 0
    with namespace("documentation_page") as module:
        for index, block in enumerate(blocks):
            if is_run(block):
                # Empty lines in front, so that a traceback has the page's line numbers.
                code = compile("\n" * (block.line - 1) + block.code, name, "exec")
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(code, vars(module))
                printed[index] = out.getvalue()
            elif block.language == "text" and block.follows in printed:
                assert printed[block.follows] == block.code, f"{name}, line {block.line}"
                compared += 1
    return compared


@every_page
def test_examples_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    if "timm" in RUN_WITH.findall(text):
        load_vision()  # timm needs torchvision, whose build may be another than PyTorch's
    check_examples(text, name_of(page))


def test_recipes_for_what_the_tests_use_are_run():
    requirements = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    wanted = {name for text in pages for name in RUN_WITH.findall(text)}
    installed = {name for name in wanted if find_spec(name) is not None}
    assert wanted & set(re.findall(r"^(\w+)==", requirements, re.MULTILINE)) <= installed
    assert {"timm", "torchao"} <= installed


@pytest.mark.parametrize("page", ["reasons", "laws", "how-to/read-the-report"])
def test_pages_with_examples_are_seen_as_such(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks, _ = read(text)
    assert text.count("```python\n") == sum(map(is_run, blocks)) > 1
    assert any(block.language == "text" and block.follows is not None for block in blocks)


# -------------------------------------------------------------------- its links


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    _, prose = read(text)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        if count:
            found.setdefault(f"{slug}-{count}", 0)
    return set(found) | set(re.findall(r'<a (?:id|name)="([^"]+)"', prose))


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    _, prose = read(page.read_text(encoding="utf-8"))
    prose = re.sub(r"`[^`\n]*`", "", prose)
    targets = re.findall(r"\]\(<?([^)\s>]+)[^)]*\)", prose)
    targets += re.findall(r"^ *\[[^]]+\]: *(\S+)", prose, re.MULTILINE)
    targets += re.findall(r'(?:href|src)="([^"]+)"', prose)
    return [target for target in targets if not leads_somewhere(page, target)]


def leads_somewhere(page: Path, target: str) -> bool:
    if re.match(r"[a-z][a-z+.-]*:|//", target):
        return True  # another site, or mailto
    path, _, anchor = target.partition("#")
    file = (page.parent / path) if path else page
    if not file.exists():
        return False
    if not anchor or file.suffix != ".md":
        return True
    return anchor in anchors(file.read_text(encoding="utf-8"))


@every_page
def test_relative_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_reasons_can_be_linked_by_their_value():
    from bnfold import Reason

    found = anchors((ROOT / "docs" / "reasons.md").read_text(encoding="utf-8"))
    assert [reason.value for reason in Reason if reason.value not in found] == []


# -------------------------------------------------------------------- would they notice?

PAGE = """\
# A page

```python
x = 1
print("a", x)
```

```text
a 1
```

<!-- not run -->
```python
raise SystemExit
```

```text
not compared
```

```python
print(x + 1)
```

Words in between.

```text
not compared either
```
"""


def test_a_page_that_is_right_passes(tmp_path):
    assert check_examples(PAGE, "page") == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a 1", "a 2"),
        ("a 1\n", "a 1 \n"),
        ("a 1\n", "a 1\n\n"),
        ("x = 1", "x = 2"),
        ("print(x + 1)", "assert x == 2"),
        ("Words in between.\n\n", ""),
        ("not compared either\n```", "without an end"),
    ],
)
def test_a_page_that_is_wrong_fails(old, new):
    assert old in PAGE
    with pytest.raises(AssertionError):
        check_examples(PAGE.replace(old, new, 1), "page")


def test_an_example_that_raises_has_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as raised:
        check_examples(PAGE.replace("print(x + 1)", "x / 0"), "page")
    assert raised.traceback[-1].lineno + 1 == PAGE.splitlines().index("print(x + 1)") + 1


def test_the_mark_exempts_only_the_block_that_follows_it():
    with pytest.raises(SystemExit):
        check_examples(PAGE.replace(NOT_RUN, f"{NOT_RUN}\nWords."), "page")


@pytest.mark.parametrize(("package", "runs"), [("json", True), ("no_such_package", False)])
def test_a_recipe_is_run_where_its_package_is(package, runs):
    page = PAGE.replace(NOT_RUN, f"<!-- run with {package} -->")
    with pytest.raises(SystemExit) if runs else contextlib.nullcontext():
        assert check_examples(page, "page") == 1


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("[a](other.md)", True),
        ("[a](other.md#two-words)", True),
        ("[a](other.md#two-words-1)", True),
        ("[a](#here)", True),
        ("[a](folder)", True),
        ("[a](https://example.org/nothing#here)", True),
        ("`[a](missing.md)`", True),
        ("```\n[a](missing.md)\n```", True),
        ("[a](missing.md)", False),
        ("[a](other.md#two-words-2)", False),
        ("[a](other.md#code)", False),
        ("[a](#there)", False),
        ("![a](missing.png)", False),
        ("[a]: missing.md", False),
        ('<img src="missing.png">', False),
    ],
)
def test_links_are_followed(link, leads, tmp_path):
    (tmp_path / "folder").mkdir()
    other = "# Two `words`\n\n```\n# code\n```\n\n## Two words!\n"
    (tmp_path / "other.md").write_text(other, encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{link}\n", encoding="utf-8")
    assert (broken_links(page) == []) is leads
