"""A prediction in a new process imports nothing that takes long, once its network was converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

SLOW_IMPORTS = (
    "torch",
    "transformers",
    "matplotlib",
    "skimage",
    "pandas",
    "dask",
    "qtpy",
    "napari",
    "lightning",
)
CALL = """
import json, sys
from napari_lrmil.cli import main
sys.argv = ["napari-lrmil", "predict", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
def test_a_known_model_is_run_without_torch(tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("slide", LESION, 3, (2560, 1920)))
    environment = os.environ | {"NAPARI_LRMIL_CACHE": str(tmp_path / "cache")}
    call = [sys.executable, "-c", CALL, str(slide), "--bundle", "demo", "--no-resume", "--device", "cpu"]
    loaded, results = [], []
    for out in (tmp_path / "first", tmp_path / "second"):
        done = subprocess.run(
            [*call, "--out", str(out)], env=environment, capture_output=True, text=True, check=True, timeout=240
        )
        loaded.append(set(json.loads(done.stdout.splitlines()[-1])))
        results.append(json.loads((out / "slide" / "prediction.json").read_text(encoding="utf-8")))
    assert "torch" in loaded[0], "the first call converts the network"
    assert not loaded[0] & (set(SLOW_IMPORTS) - {"torch"})
    assert not loaded[1] & set(SLOW_IMPORTS)
    assert results[0]["probabilities"] == results[1]["probabilities"] and results[1]["runtime"] == "openvino"
