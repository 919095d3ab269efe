"""`bnfold --print-completion`: what the shells are told, and that bash completes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bnfold.cli import COMMANDS, main


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--print-completion", "bash"]) == 0
    return capsys.readouterr().out


def completed(script: str, folder: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(words)
    ask = f"COMP_WORDS=({line}); [ -z '{words[-1]}' ] && COMP_WORDS+=(''); "
    ask += "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
    ask += "_shtab_bnfold; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        ["bash", "-c", f"compopt() {{ :; }}\n{script}\n{ask}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "abacus"]) == 2
    assert "choose one of bash, zsh" in capsys.readouterr().err


def test_without_shtab_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 4
    assert 'pip install "bnfold[completion]"' in capsys.readouterr().err


def test_help_does_not_load_it() -> None:
    code = (
        "import sys; from bnfold.cli import main; main(['--help']); print('shtab' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


@pytest.mark.parametrize("arguments", [[], ["--print-completion"], ["fold", "--print-completion"]])
def test_it_takes_the_place_of_a_command_only_with_a_shell(arguments: list[str]) -> None:
    assert main(arguments) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_knows_all_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-completion", shell]) == 0
    text = capsys.readouterr().out
    for word in (*COMMANDS, "clip", "no-verify", "channels-last", "no-layers", "always"):
        assert word in text


def test_bash_completes_commands(script: str, tmp_path: Path) -> None:
    assert set(COMMANDS) <= set(completed(script, tmp_path, "bnfold", ""))
    assert completed(script, tmp_path, "bnfold", "ver") == ["verify"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("fold", "--no-v"), ["--no-verify"]),
        (("fold", "--clip", "al"), ["always"]),
        (("bench", "--channels"), ["--channels-last"]),
        (("inspect", "--phase", ""), ["test"]),
        (("fold", "net"), ["network.onnx"]),
        (("verify", "net"), ["network.onnx"]),
        (("fold", "--output", "net"), ["network.onnx"]),
    ],
)
def test_bash_completes_options_values_and_files(
    words: tuple[str, ...], found: list[str], script: str, tmp_path: Path
) -> None:
    (tmp_path / "network.onnx").touch()
    assert completed(script, tmp_path, "bnfold", *words) == found
