"""Completion of commands and options in shells, which `napari-lrmil --install-completion` sets up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALL = "import sys; sys.argv[0] = 'napari-lrmil'; from napari_lrmil.cli import main; main()"


def run(cwd: Path, *words: str, **variables: str) -> str:
    """Return what the command prints."""
    call, env = [sys.executable, "-c", CALL, *words], {**os.environ, **variables}
    done = subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "completed"),
    [("napari-lrmil pre", ["predict"]), ("napari-lrmil train --no-tea", ["--no-teacher"]), ("napari-lrmil xyz", [])],
)
def test_commands_and_options_are_completed(line: str, completed: list[str], tmp_path: Path) -> None:
    position = str(len(line.split()) - 1)
    variables = {"COMP_WORDS": line, "COMP_CWORD": position, "_NAPARI_LRMIL_COMPLETE": "complete_bash"}
    assert run(tmp_path, **variables).split() == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_script_of_a_shell_calls_the_program(shell: str, tmp_path: Path) -> None:
    """The variable is of typer: the shell is named in place of being found out."""
    script = run(tmp_path, "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"_NAPARI_LRMIL_COMPLETE={'complete_' if shell != 'powershell' else ''}" in script.replace(" ", "").replace(
        '"', ""
    )
