"""What every test shares: nothing is fetched, one torch thread, the development data where it is."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:  # each of these loads torch
    from support.trained import Trained

os.environ["HF_HUB_OFFLINE"] = "1"  # or each look-up waits for a network that is not there
os.environ["OMP_NUM_THREADS"] = "1"  # several test processes share the cores; torch reads it when it is loaded
os.environ["NAPARI_LRMIL_CONFIG"] = tempfile.mkdtemp(prefix="napari-lrmil-")  # nothing of the user's is read or changed
os.environ["NAPARI_LRMIL_CACHE"] = tempfile.mkdtemp(
    prefix="napari-lrmil-"
)  # nor left behind among what can be made again
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore interrupts

SLOW = {"trained", "cluster", "viewer"}  # fixtures that take seconds: trainings, dask, windows
LONGEST_FIRST = (
    "tests/plugin/",
    "tests/training/stages/",
    "tests/training/runs/",
    "tests/core/runtimes/",
    "tests/cli/",
)
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with slow fixtures; begin with the longest modules if several processes share the tests."""
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in LONGEST_FIRST])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what hands whole modules to processes under ``--dist loadscope``, and all window tests to one of them."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            # Windows of two processes on one screen would take the keyboard from each other.
            return "tests/plugin" if nodeid.startswith("tests/plugin/") else super()._split_scope(nodeid)

    return ByModule(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real development data, which is no part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the development data (shared/data beside the repository) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Return what fills a folder by name for all test processes: the first that asks builds, the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def build(name: str, fill: Callable[[Path], None]) -> Path:
        folder, complete = shared / name, shared / f"{name}.complete"
        with FileLock(shared / f"{name}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed half-way
                folder.mkdir()
                fill(folder)
                complete.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def phantoms(build_once: Callable[..., Path]) -> Path:
    """Return the table of sixteen phantom slides: 8 train, 4 val, 4 test. All tests read them, none writes there."""
    from support.phantoms import paint_cohort

    return build_once("phantoms", paint_cohort) / "cohort.csv"


@pytest.fixture(scope="session")
def trained(build_once: Callable[..., Path], phantoms: Path) -> Trained:
    """Return a short finished run on the phantom slides; all tests read it, those that write make a copy."""
    from support.trained import Trained

    return Trained.in_folder(build_once("trained", lambda folder: Trained.fill(folder, phantoms)), phantoms)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line in this process: exit code, standard output, standard error."""
    from napari_lrmil import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["napari-lrmil", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(autouse=True)
def _no_window_left() -> Iterator[None]:
    """Fail a test that leaves a window, or one of our widgets without a parent; Qt is not loaded to find out."""
    before = _windows()
    yield
    if any(widget not in before for widget in _windows()):
        gc.collect()  # a removed dock without a parent lives until its reference cycle is found
    left = [repr(widget) for widget in _windows() if widget not in before]
    assert not left, f"left after the test: {', '.join(left)}"


def _windows() -> list[Any]:
    """Return the top-level widgets that are ours or visible; napari itself keeps a few hidden menus."""
    qt = sys.modules.get("PySide6.QtWidgets") or sys.modules.get("PyQt6.QtWidgets")
    app = qt.QApplication.instance() if qt else None
    if app is None or qt is None:
        return []
    core = sys.modules[qt.__name__.replace("QtWidgets", "QtCore")]
    app.sendPostedEvents(None, core.QEvent.Type.DeferredDelete)  # closed widgets that wait for their deletion
    widgets: list[Any] = qt.QApplication.topLevelWidgets()
    return [widget for widget in widgets if widget.isVisible() or type(widget).__module__.startswith("napari_lrmil")]
