"""Slides for which no model was named: a phantom is read without a word, and tissue with a warning."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from napari_lrmil.api import predict
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from support.jpeg_slides import write_jpeg_slide
from support.tile_slides import rectangle

Call = Callable[..., tuple[int, str, str]]
SAID = "no model was named, so demo was used, which knows phantoms only"


def _said(out: Path) -> list[str]:
    warnings = json.loads(out.read_text())["warnings"]
    return [warning for warning in warnings if SAID in warning]


def test_tissue_is_predicted_with_a_warning_that_lists_the_shipped_models(call: Call, tmp_path: Path) -> None:
    slide = write_jpeg_slide(tmp_path / "a.tif", rectangle())
    code, _, err = call("predict", slide, "--out", tmp_path / "out", "--no-overlay")
    assert code == 0 and SAID in " ".join(err.split())
    (warning,) = _said(tmp_path / "out" / "a" / "prediction.json")
    assert "demo: phantoms only" in warning
    code, _, err = call("predict", slide, "--bundle", "demo", "--out", tmp_path / "named", "--no-overlay")
    assert code == 0 and SAID not in " ".join(err.split())
    assert _said(tmp_path / "named" / "a" / "prediction.json") == []
    code, out, err = call("predict", slide, "--out", tmp_path / "named", "--no-overlay")
    assert code == 0 and "already there" in out + err and SAID in " ".join(err.split()), "a reused result is told too"


def test_a_phantom_needs_no_name(call: Call, tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("a", LESION, 5, (1024, 1024), 0.5))
    assert call("predict", slide, "--out", tmp_path / "out", "--no-overlay")[0] == 0
    assert _said(tmp_path / "out" / "a" / "prediction.json") == []


def test_evaluate_says_it_first_and_in_its_files(call: Call, tmp_path: Path) -> None:
    """A phantom among tissue is no reason for silence; a table of phantoms is one."""
    slide = write_jpeg_slide(tmp_path / "a.tif", rectangle())
    phantom = write_slide(tmp_path, PhantomSlide("b", LESION, 5, (1024, 1024), 0.5))
    header, of_phantom = "slide,patient,label\n", f"{phantom},2,lesion\n"
    table, phantoms = tmp_path / "cohort.csv", tmp_path / "phantoms.csv"
    table.write_text(f"{header}{of_phantom}{slide},1,normal\n")
    phantoms.write_text(header + of_phantom)
    options = ["--split", "all", "--device", "cpu", "--no-teacher", "--out"]
    code, _, err = call("evaluate", table, *options, tmp_path / "out")
    assert code == 0 and err.split("cohort.csv: ")[1].startswith(SAID)
    warning, *of_slides = json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"]
    assert all("of 2 slides" in text for text in of_slides)
    assert warning.startswith(SAID) and SAID in (tmp_path / "out" / "report.html").read_text()
    for command in ([phantoms, *options], [table, "--bundle", "demo", *options]):
        code, _, err = call("evaluate", *command, tmp_path / "silent")
        assert code == 0 and SAID not in err
        metrics = (tmp_path / "silent" / "metrics.json").read_text()
        assert SAID not in metrics and set(json.loads(metrics)) - {"warnings"} == {"student"}


def test_python_says_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slide = write_jpeg_slide(tmp_path / "a.tif", rectangle())
    with caplog.at_level(logging.WARNING, "napari_lrmil"):
        prediction = predict(slide, runtime="torch", device="cpu")
    assert prediction.warnings[0].startswith(SAID) and SAID in caplog.text
    assert not any(SAID in warning for warning in predict(slide, "demo", runtime="torch", device="cpu").warnings)
