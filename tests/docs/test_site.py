"""The documentation builds as a site without a warning, and none of its pages is left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bnfold

ROOT = Path(__file__).parents[2]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Not --quiet: it silences the logger that --strict counts warnings of.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(config), "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    return folder


def test_every_page_is_there_and_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        target = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / target).is_file()
        assert f'href="{target}"' in home, target


def test_every_public_name_is_in_the_reference(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    found = set(re.findall(r'id="bnfold\.(?:\w+\.)*(\w+)"', text))
    assert set(bnfold.__all__) - {"__version__"} - found == set()


def test_lists_are_lists(site):
    """Markdown of the site wants an empty line in front of a list; the repository's does not."""
    for page in site.rglob("*.html"):
        assert re.findall(r"<p>[^<]*\n- [^<]*", page.read_text(encoding="utf-8")) == [], page


def test_a_broken_link_fails_the_build(tmp_path):
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("# Here\n\n[there](there.md)\n", encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    config.write_text("site_name: one page\n", encoding="utf-8")
    assert build(config, tmp_path / "site").returncode != 0
