"""``predict --ladder`` and ``predict --cascade``: files, tables, resume, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.ladder.schema import CascadeFile, LadderFile
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.phantom.artefact_paint import paint_pen
from napari_lrmil.core.results.schema import PredictionFile
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import write_tiff
from support.ladders import CLOSED, ladder_bundles, write_sets

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for i in range(4):
        write_slide(folder, PhantomSlide(f"s{i}", LESION, i, (1024, 768)))
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    ladder_bundles(folder, 2.0, 1.0)
    return folder


def options(bundles: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("--bundle", bundles, "--out", out, "--device", "cpu", "--runtime", "torch", "--no-overlay", *more)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_a_ladder_is_printed_and_written_beside_the_prediction(
    call: Call, slides: Path, bundles: Path, tmp_path: Path
) -> None:
    slide, out = slides / "s0.tif", tmp_path / "out"
    code, printed, error = call("predict", slide, *options(bundles, out, "--ladder", "--teacher", "all"))
    assert code == 0, error
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["answer", "20x", "10x", "5x", "2.5x"]
    assert "no model of this resolution was given" in lines[-1]
    file, prediction = LadderFile.read(out / "s0"), PredictionFile.read(out / "s0")
    assert file.text in lines[0] and file.reference == "20x teacher"
    assert [rung.state for rung in file.rungs] == ["no model", "read", "read", "read"]
    *_, fine, teacher = file.rungs
    assert prediction.bundle == "at-1" and prediction.probabilities == fine.probabilities
    assert prediction.teacher is not None and prediction.teacher.probabilities == teacher.probabilities
    assert teacher.spearman is None and fine.compared_patches == fine.n_patches
    for table in (out / "s0" / "ladder.csv", out / "ladder.csv"):
        assert [row["magnification"] for row in rows(table)] == ["2.5x", "5x", "10x", "20x"]
    again = call("predict", slide, *options(bundles, out, "--ladder", "--teacher", "all"))[1]
    assert "(already there)" in again and again.splitlines()[-5:] == lines[-5:]
    other = call("predict", slide, *options(bundles, out, "--ladder"))[1]
    assert "already there" not in other and "--teacher all adds the teacher" in other


def test_a_cohort_has_one_table_and_a_broken_slide_stops_no_other(
    call: Call, slides: Path, bundles: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"no slide")
    code, printed, error = call("predict", slides, broken, *options(bundles, tmp_path / "out", "--ladder"))
    assert code == 3 and "broken.svs" in error
    assert "same answer" in printed and "of 4 slides" in printed.splitlines()[-1]
    table = rows(tmp_path / "out" / "ladder.csv")
    assert len(table) == 4 * 4
    coarse = [row["warnings"] for row in table if row["magnification"] == "5x"]
    assert list(table[0])[-1] == "warnings" and all("little tissue: " in text for text in coarse)
    for name in ("s0", "s3"):
        (rung,) = (rung for rung in LadderFile.read(tmp_path / "out" / name).rungs if rung.label == "5x")
        assert " | ".join(rung.warnings) in coarse
    assert "5x (at-2): 4 of 4 slides: little tissue: " in error and "s0: 5x (at-2): little tissue: " in error


def test_workers_write_what_one_process_writes(call: Call, slides: Path, bundles: Path, tmp_path: Path) -> None:
    given = (slides / "s0.tif", slides / "s1.tif")
    for name, more in {"one": (), "two": ("--workers", 2)}.items():
        code, _, error = call("predict", *given, *options(bundles, tmp_path / name, "--ladder", *more))
        assert code == 0, error
    for slide in ("s0", "s1"):
        one, two = (LadderFile.read(tmp_path / name / slide) for name in ("one", "two"))
        assert [rung.probabilities for rung in one.rungs] == [rung.probabilities for rung in two.rungs]


def test_a_cascade_climbs_as_far_as_its_sets_say(call: Call, slides: Path, tmp_path: Path) -> None:
    coarse, fine = ladder_bundles(tmp_path / "bundles", 2.0, 1.0)
    slide, out = slides / "s0.tif", tmp_path / "out"
    words = ("predict", slide, *options(tmp_path / "bundles", out, "--cascade", "--teacher", "all"))
    code, printed, error = call(*words)
    assert code == 0, error
    assert "answered at 20x teacher; set at 90 %: normal or lesion" in printed
    assert "1 of 1 slide went up" in printed and "answered by the teacher" in error
    file = CascadeFile.read(out / "s0")
    assert [rung.state for rung in file.rungs] == ["went up", "went up", "answered"]
    assert any("answered by the teacher" in text for text in PredictionFile.read(out / "s0").warnings)
    write_sets(fine, CLOSED)
    code, printed, error = call(*words)  # other limits: another result
    assert code == 0 and "answered at 10x" in printed, error
    assert PredictionFile.read(out / "s0").bundle == "at-1"
    write_sets(coarse, CLOSED)
    code, printed, error = call(*words)
    assert "answered at 5x" in printed and "0 of 1 slide went up" in printed, error
    (row,) = rows(out / "cascade.csv")
    assert (row["answered_by"], row["went_up"], row["is_settled"]) == ("5x", "False", "True")
    assert "(already there)" in call(*words)[1]


def test_a_spent_budget_is_told(call: Call, slides: Path, bundles: Path, tmp_path: Path) -> None:
    words = options(bundles, tmp_path / "out", "--cascade", "--budget", 0)
    code, printed, error = call("predict", slides / "s0.tif", *words)
    assert code == 0, error
    assert "10x not begun: it is expected to take longer" in printed and "1 left open" in printed
    content: dict[str, Any] = json.loads((tmp_path / "out" / "s0" / "cascade.json").read_text())
    assert content["budget"] == 0 and not content["is_settled"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--ladder", "--cascade"], "use one of them"),
        (["--budget", 3], "--budget limits a cascade"),
        (["--ladder", "--report"], "leave --report out"),
        (["--cascade", "--by", "patient"], "leave --by out"),
        (["--ladder", "--tissue", "mask.png"], "leave --tissue out: it is a mask on the raster of one model's"),
        (["--cascade", "--roi", "part.geojson"], "leave --roi out: a cascade decides by sets of classes"),
        (["--ladder", "--teacher", "top-3"], "use --teacher all"),
        (["--bundle", "demo"], "2 bundles were given"),
        (["--ladder", "--bundle", "nowhere"], "no bundle with this path or name"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    call: Call, slides: Path, bundles: Path, tmp_path: Path, more: list[object], text: str
) -> None:
    code, _, error = call("predict", slides / "s0.tif", *options(bundles, tmp_path / "out", *more))
    assert code == 2 and text in " ".join(error.split()) and not (tmp_path / "out").exists()


def test_a_cascade_of_a_model_without_sets_is_refused(call: Call, slides: Path, tmp_path: Path) -> None:
    ladder_bundles(tmp_path / "bundles", 2.0, 1.0, score=None)
    words = ("predict", slides / "s0.tif", *options(tmp_path / "bundles", tmp_path / "out", "--cascade"))
    code, _, error = call(*words)
    assert code == 2 and "this model has no sets" in error


def test_a_ladder_reads_a_region_at_every_resolution(call: Call, slides: Path, bundles: Path, tmp_path: Path) -> None:
    """Its probabilities are region scores: not calibrated, without sets, and never reused."""
    corners = [[100, 100], [800, 100], [800, 600], [100, 600], [100, 100]]
    geometry = {"type": "Polygon", "coordinates": [corners]}
    roi = tmp_path / "part.geojson"
    roi.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}))
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert call("predict", slides / "s0.tif", *options(bundles, whole, "--ladder", "--teacher", "all"))[0] == 0
    words = ("predict", slides / "s0.tif", *options(bundles, part, "--ladder", "--teacher", "all", "--roi", roi))
    code, printed, error = call(*words)
    assert code == 0 and "drawn region: " in printed, error
    for of_part, of_whole in zip(LadderFile.read(part / "s0").rungs, LadderFile.read(whole / "s0").rungs, strict=True):
        if of_whole.was_read:
            assert of_part.n_patches is not None and of_whole.n_patches is not None
            assert 0 < of_part.n_patches < of_whole.n_patches
            assert of_part.prediction_set is None and of_whole.prediction_set is not None
            assert not of_part.calibrated
    assert PredictionFile.read(part / "s0").scope == "drawn region"
    assert "(already there)" not in call(*words)[1]
    code, _, error = call("predict", slides, *options(bundles, part, "--ladder", "--roi", roi))
    assert code == 2 and "--roi is about one slide" in error


def test_artefacts_are_left_out_at_every_resolution(call: Call, bundles: Path, tmp_path: Path) -> None:
    with Slide(write_slide(tmp_path, PhantomSlide("plain", LESION, 300, (2048, 1536)))) as slide:
        pixels, _ = paint_pen(slide.read_level(0, 0, 0, 2048, 1536), 0.5, (0.25, 0.66, 0.40))
    inked = write_tiff(tmp_path / "inked.tif", pixels, (1.0, 4.0), mpp=(0.5, 0.5))
    read = {}
    for name, more in (("with", ()), ("without", ("--exclude-artefacts",))):
        for kind in ("--ladder", "--cascade"):
            out = tmp_path / f"{name}{kind}"
            code, _, error = call("predict", inked, *options(bundles, out, kind, "--teacher", "all", *more))
            assert code == 0, error
            stored = PredictionFile.read(out / "inked").artefacts
            assert stored is not None and stored.excluded == bool(more)
        read[name] = [rung.n_patches for rung in LadderFile.read(tmp_path / f"{name}--ladder" / "inked").rungs]
    pairs = [(w, wo) for w, wo in zip(read["with"], read["without"], strict=True) if w is not None and wo is not None]
    assert len(pairs) == 3 and all(wo < w for w, wo in pairs)
    out = tmp_path / "with--ladder"
    words = ("predict", inked, *options(bundles, out, "--ladder", "--teacher", "all"))
    assert "(already there)" in call(*words)[1]
    assert "(already there)" not in call(*words, "--exclude-artefacts")[1]
