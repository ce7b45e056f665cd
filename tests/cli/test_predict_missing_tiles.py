"""Slides with missing and damaged tiles on the command line and from Python: told, refused, or predicted on request."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.api import extract_features, predict
from napari_lrmil.core.benchmark import BASELINE
from napari_lrmil.core.benchmark import measure as measuring
from napari_lrmil.core.benchmark.setups import LR_TORCH
from napari_lrmil.core.encoders import save_encoder
from napari_lrmil.core.errors import MissingTilesError
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.models.bundle import Bundle
from support.fake_slides import one_sentence
from support.jpeg_slides import damaged, write_jpeg_slide
from support.networks import untrained_bundle, untrained_encoder
from support.tile_slides import FRAME, rectangle, tile

Call = Callable[..., tuple[int, str, str]]
FEW, MANY = [tile(2, 2), tile(3, 2)], [tile(c, r) for r in (2, 3) for c in range(1, 7)]


def write(folder: Path, empty: Sequence[int] = (), broken: Sequence[int] = ()) -> Path:
    path = write_jpeg_slide(folder / "a.tif", rectangle(), empty=empty)
    for index in broken:
        damaged(path, index, at=0.3)
    return path


def stored(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "a" / "prediction.json").read_text())
    return content


@pytest.mark.parametrize("empty", [(), FRAME])
def test_nothing_is_said_of_a_whole_slide(call: Call, tmp_path: Path, empty: Sequence[int]) -> None:
    code, out, err = call("predict", write(tmp_path, empty), "--out", tmp_path / "out", "--no-overlay")
    assert code == 0 and "missing" not in out + err and "missing_tiles" not in stored(tmp_path / "out")


@pytest.mark.parametrize(("empty", "broken", "kind"), [(FEW, (), "not stored"), ((), FEW, "damaged")])
def test_a_share_above_5_percent_is_a_warning(
    call: Call, tmp_path: Path, empty: Sequence[int], broken: Sequence[int], kind: str
) -> None:
    code, _, err = call("predict", write(tmp_path, empty, broken), "--out", tmp_path / "out")
    (said,) = [line for line in err.replace("\n", " ").split("; ") if "hide 8 %" in line]
    assert code == 0 and f"2 tiles {kind}" in said
    content = stored(tmp_path / "out")
    assert sum(f"2 tiles {kind}" in warning for warning in content["warnings"]) == 1
    assert content["missing_tiles"]["tissue_share"] == pytest.approx(2 / 24, abs=0.01)
    assert content["missing_tiles"]["levels"] == [0]


def test_a_small_share_is_told_and_no_warning(call: Call, tmp_path: Path) -> None:
    code, _, err = call("predict", write(tmp_path, FEW[:1]), "--out", tmp_path / "out", "--no-overlay")
    assert code == 0 and "missing tiles hide 4 %" in err
    content = stored(tmp_path / "out")
    assert content["missing_tiles"]["not_stored_on_tissue"] == 1
    assert not any("missing" in warning for warning in content["warnings"])


@pytest.mark.parametrize("is_damage", [False, True])
def test_above_a_third_the_slide_is_refused(call: Call, tmp_path: Path, is_damage: bool) -> None:
    path, out = write(tmp_path, *(((), MANY) if is_damage else (MANY, ()))), tmp_path / "out"
    code, _, err = call("predict", path, "--out", out, "--no-overlay")
    with (out / "failures.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert code == 3 and row["slide"] == "a.tif" and "hide 48 %" in row["reason"] and "--allow-missing" in row["reason"]
    assert "Traceback" not in err and one_sentence(row["reason"]) and not (out / "a" / "prediction.json").exists()
    command = ("predict", path, "--out", out, "--no-overlay", "--report")
    assert call(*command, "--allow-missing")[0] == 0
    assert "--allow-missing" in (out / "a" / "report.html").read_text(encoding="utf-8")
    assert any("hide 48 %" in warning for warning in stored(out)["warnings"])
    assert "already there" in call(*command, "--allow-missing")[1]
    assert call(*command)[0] == 3  # the stored result was allowed by that call alone


def test_a_region_is_judged_by_its_own_tissue(call: Call, tmp_path: Path) -> None:
    """The region lies in the upper half, and half of the slide is missing below."""
    ring = [[260, 260], [1790, 260], [1790, 760], [260, 760], [260, 260]]
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    lower = [tile(c, r) for r in (3, 4, 5) for c in range(8)]
    code, _, err = call("predict", write(tmp_path, lower), "--roi", roi, "--out", tmp_path / "out", "--no-overlay")
    assert code == 0 and "missing tiles hide" not in err


def test_features_of_a_refused_slide_are_made_on_request(call: Call, tmp_path: Path) -> None:
    weights, folder = tmp_path / "untrained.safetensors", tmp_path / "cohort"
    save_encoder(weights, untrained_encoder())
    folder.mkdir()
    write(folder, MANY)
    command = ("features", folder, "--encoder", weights, "--patch-px", 128, "--out", tmp_path / "f")
    code, _, err = call(*command)
    assert code == 3 and "--allow-missing" in err and not list((tmp_path / "f").rglob("*.h5"))
    code, _, err = call(*command, "--allow-missing")
    (file,) = (tmp_path / "f").rglob("features_*/*.h5")
    assert code == 0 and "hide 48 %" in err
    assert read_bag(file).origin.missing_tissue_share == pytest.approx(0.5, abs=0.03)
    modified = file.stat().st_mtime_ns
    assert call(*command, "--allow-missing")[0] == 0 and file.stat().st_mtime_ns == modified
    assert call(*command)[0] == 3  # the stored file was allowed by that call alone


def test_compare_and_evaluate_take_a_refused_slide_on_request(call: Call, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "bundle", name="b").path
    path, table = write(tmp_path, MANY), tmp_path / "cohort.csv"
    label = Bundle(bundle).card.classes[0]
    table.write_text(f"slide,patient,label,split\na.tif,p,{label},test\n")
    for command in (("compare", path), ("evaluate", table)):
        command = (*command, "--bundle", bundle, "--out", tmp_path / command[0])
        code, _, err = call(*command)
        assert code == 1 and "hide 4" in err, err
        code, _, err = call(*command, "--allow-missing")
        assert code == 0 and "hide 4" in err, err


def test_bench_counts_missing_tiles_and_refuses_as_predict(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_measure_in_child", measuring.measure)
    monkeypatch.setattr(sys.modules["napari_lrmil.cli.bench"], "_setups", lambda **_: [BASELINE, LR_TORCH])
    command = ("bench", "--bundle", untrained_bundle(tmp_path / "b").path, "--repeats", 1, "--most-patches", 64)
    few, out = write(tmp_path, FEW[:1], FEW[1:]), tmp_path / "out"
    code, _, err = call(*command, "--out", out, few)
    sentence = "missing tiles hide 8 % of the tissue (1 tile not stored, 1 tile damaged, level 0)"
    assert code == 0 and sentence in " ".join(err.split()), err
    setups = json.loads((out / "bench.json").read_text())["measured"][0]["setups"]
    assert all(sentence in setup["notices"][0] for setup in setups)
    assert (out / "bench.md").read_text().count(sentence) == 1
    many = write(tmp_path, MANY)
    code, _, err = call(*command, "--out", out, many)
    assert code == 1 and "--allow-missing" in err and "Traceback" not in err
    assert call(*command, "--out", out, "--allow-missing", many)[0] == 0


def test_python_tells_and_refuses_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, MANY)
    with pytest.raises(MissingTilesError, match="allow_missing=True"):
        predict(path, device="cpu")
    with pytest.raises(MissingTilesError):
        extract_features(path, device="cpu")
    with caplog.at_level(logging.WARNING):
        prediction = predict(path, device="cpu", allow_missing=True)
        bag = extract_features(path, device="cpu", allow_missing=True)
    assert prediction.missing_tiles.tissue_share == pytest.approx(0.5, abs=0.03)
    assert caplog.text.count("missing tiles hide 48 %") == 2 and np.isfinite(bag.features).all()
