"""Sample slide: written once, and opened like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from napari_lrmil.plugin.viewer.opening import sample_data


def test_the_sample_is_painted_once_and_opens_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_data, "SAMPLE_SLIDE", replace(sample_data.SAMPLE_SLIDE, size=(1500, 1200)))
    monkeypatch.setattr(sample_data, "_cache_folder", lambda: tmp_path)
    [(data, options, kind)] = sample_data.phantom_slide()
    assert kind == "image" and options["scale"] == pytest.approx((0.5, 0.5), rel=1e-4)
    assert data[0].shape == (1200, 1500, 3)
    written = next(tmp_path.glob("*.tif")).stat().st_mtime_ns
    sample_data.phantom_slide()
    assert next(tmp_path.glob("*.tif")).stat().st_mtime_ns == written
