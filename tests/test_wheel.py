"""What is released: metadata that an index takes, all files in the wheel, and a wheel that runs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = (
    "bnfold/py.typed",
    "bnfold/report.schema.json",
    "bnfold/demo/digits_net.npz",
    "bnfold/demo/digits_held_out.npz",
)


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_an_index_takes_the_metadata(built):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_has_every_file_of_the_package(built):
    inside = set(zipfile.ZipFile(only(built, "*.whl")).namelist())
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "bnfold").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(FILES) <= inside
    assert any(name.startswith("bnfold/page/assets/") for name in inside)
    assert expected - inside == set()


def test_the_sdist_has_what_the_tests_need(built):
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "Makefile", "requirements/dev.txt", "mkdocs.yml"} <= inside
    assert "tests/test_wheel.py" in inside


def test_the_wheel_runs_in_a_fresh_environment_without_its_dependencies(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"),
        only(built, "*.whl"),
    )
    where = run(python, "-I", "-c", "import bnfold; print(bnfold.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path)
    assert "inspect" in run(python.with_name("bnfold"), "--help")
