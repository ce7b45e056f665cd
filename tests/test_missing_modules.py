"""Without the window's modules, and without those that only POSIX has, every module imports, trains and predicts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from support.phantoms import copy_cohort

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "napari_lrmil", ROOT / "src_training" / "lrmil_training")
WINDOW = ("napari", "qtpy", "magicgui", "superqt", "psygnal", "vispy", "PySide6", "PySide2", "PyQt6", "PyQt5")
POSIX = ("fcntl", "grp", "pwd", "resource", "termios")  # Windows has none of them
# Read by every Python that starts with this folder in its path, worker processes included. Libraries may import POSIX
# modules where there are any, so these are blocked for the project's own modules.
BLOCK = """
    import builtins
    from importlib.machinery import PathFinder
    real_find = PathFinder.find_spec
    def guarded_find(name, path=None, target=None):
        return None if name.partition(".")[0] in {window!r} else real_find(name, path, target)
    PathFinder.find_spec = guarded_find
    real_import = builtins.__import__
    def guarded_import(name, globals=None, *rest, **named):
        owner = str((globals or {{}}).get("__name__")).partition(".")[0]
        if name in {posix!r} and owner in ("napari_lrmil", "lrmil_training"):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
        return real_import(name, globals, *rest, **named)
    builtins.__import__ = guarded_import
"""
# Elsewhere than on Linux every worker is spawned and imports everything itself.
SPAWNED = """
from napari_lrmil.core import processes
processes._can_fork_from_server = lambda: False
from napari_lrmil.cli import main
main()
"""
SHORT = (
    *("hr_patch_px=64", "lr_patch_px=64", "bootstrap=100", "baselines=labels_only"),
    *("teacher.epochs=2", "teacher.min_epochs=1", "stage1.epochs=1"),
    *("stage2.epochs=2", "stage2.min_epochs=1", "stage3.epochs=0"),
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a process, and of its children, that can import none of these modules."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(dedent(BLOCK.format(window=WINDOW, posix=POSIX)), encoding="utf-8")
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths}


def run(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these words, away from the checkout."""
    call = [sys.executable, *map(str, words)]
    folder = environment["PYTHONPATH"].split(os.pathsep)[0]
    return subprocess.run(call, env=environment, cwd=folder, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_every_module_but_those_of_the_window_imports(environment: dict[str, str]) -> None:
    code = """
        import importlib, pkgutil
        count = 0
        for package in map(importlib.import_module, ["napari_lrmil", "lrmil_training"]):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.startswith("napari_lrmil.plugin.") and not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
                    count += 1
        print(count)
    """
    done = run(environment, "-c", dedent(code))
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(folder) for folder in SOURCES for path in folder.rglob("*.py")]
    wanted = [path for path in files if path.name != "__main__.py" and path.parts[0] != "plugin"]
    assert int(done.stdout.splitlines()[-1]) == len(wanted) - len(SOURCES) + 1  # not the two packages, but `plugin`


@pytest.mark.slow
@pytest.mark.timeout(800)  # two commands that load torch anew, each in processes of its own
def test_a_model_is_trained_and_predicts_in_worker_processes(
    phantoms: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    table = copy_cohort(phantoms, tmp_path / "cohort", train=2, val=2, test=2)
    settings = [word for setting in SHORT for word in ("--set", setting)]
    model = tmp_path / "run"
    done = run(environment, "-m", "napari_lrmil", "train", table, "--out", model, "--device", "cpu", *settings)
    assert done.returncode == 0, done.stderr
    slides = sorted(table.parent.glob("*.tif"))[:2]
    out = tmp_path / "results"
    words = ["--bundle", model / "bundle", "--out", out, "--workers", "2", "--device", "cpu"]
    done = run(environment, "-c", SPAWNED, "predict", *slides, *words)
    assert done.returncode == 0, done.stderr
    assert sorted(path.parent.name for path in out.glob("*/prediction.json")) == [slide.stem for slide in slides]


@pytest.mark.parametrize("words", [("view",), ("demo",), ("demo", "--headless")])
def test_commands_of_the_window_say_what_to_install(
    words: tuple[str, ...], tmp_path: Path, environment: dict[str, str]
) -> None:
    out = ("--out", tmp_path / "demo") if words[0] == "demo" else ()
    done = run(environment, "-m", "napari_lrmil", *words, *out)
    assert done.returncode == 2
    assert "the window needs napari, magicgui" in " ".join(done.stderr.split())
    assert 'pip install "napari-lrmil[gui]"' in " ".join(done.stderr.split())
