"""Nothing phones home: no connection, no process that stays, no file in the user's home outside the cache."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from napari_lrmil.core.phantom import LESION, PhantomSlide, make_cohort, write_slide
from support.watched_child import COMMAND, watch_child

IMPORT = "from napari_lrmil.core.runtimes import openvino; openvino.version()"
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")


@needs_openvino
def test_openvino_is_imported_without_its_reports(tmp_path: Path) -> None:
    assert watch_child(IMPORT, tmp_path / "home") == []


def test_the_watch_sees_a_process_a_connection_and_a_file(tmp_path: Path) -> None:
    code = """
import socket, subprocess
from pathlib import Path
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9))
(Path.home() / "intel").mkdir()
"""
    events = watch_child(code, tmp_path / "home")
    assert {event.split()[0] for event in events} == {"subprocess.Popen", "socket.sendto", "child", "intel"}


@needs_openvino
@pytest.mark.slow
def test_a_prediction_leaves_the_home_as_it_was(tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("slide", LESION, 3, (2560, 1920)))
    words = ("predict", slide, "--out", tmp_path / "out", "--device", "cpu", "--runtime", "openvino")
    assert watch_child(COMMAND, tmp_path / "home", *words) == []


@pytest.mark.slow
def test_a_training_calls_nobody_and_leaves_the_home_as_it_was(tmp_path: Path) -> None:
    for split, count, seed in (("train", 2, 1), ("val", 2, 2), ("test", 2, 3)):
        list(make_cohort(tmp_path / "cohort", count, (768, 512), seed, split=split))
    settings = ("hr_patch_px=64", "lr_patch_px=64", "bootstrap=100", "baselines=[]", "stage3.epochs=0")
    settings += tuple(f"{stage}.epochs=1" for stage in ("teacher", "stage1", "stage2"))
    settings += tuple(f"{stage}.min_epochs=1" for stage in ("teacher", "stage2"))
    words = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    call = ("train", tmp_path / "cohort" / "cohort.csv", "--out", run, "--device", "cpu", *words)
    assert watch_child(COMMAND, tmp_path / "home", *call) == []
    # Nor does what it writes name folders, which may name a user.
    texts = [path.read_text(encoding="utf-8") for path in run.rglob("*") if path.suffix in (".jsonl", ".json", ".html")]
    assert texts and not [text for text in texts if str(tmp_path) in text]
