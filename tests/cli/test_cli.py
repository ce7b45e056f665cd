"""Command line: files that it writes, and one clear sentence with the right exit code for every bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_lrmil import __version__, cli
from napari_lrmil.cli import console
from napari_lrmil.cli.console import print_notice, print_result
from napari_lrmil.core.errors import EncoderError, LrmilError
from napari_lrmil.core.events import Event, Failed, Finished, Metric, Notice, Progress
from napari_lrmil.core.phantom import LESION, NORMAL, PhantomSlide, write_pyramid, write_slide
from napari_lrmil.core.user_settings import SettingsStore
from support.networks import Borrowed, untrained_bundle
from support.phantoms import copy_cohort

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an untrained bundle."""
    return untrained_bundle(tmp_path_factory.mktemp("bundle")).path


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small phantom slide."""
    return write_slide(tmp_path_factory.mktemp("slide"), PhantomSlide("phantom", LESION, 5, (1536, 1024)))


def one_sentence(err: str) -> bool:
    """Return whether an error is printed on one line, without a traceback."""
    return "Traceback" not in err and len([line for line in err.splitlines() if line.strip()]) == 1


def test_predict_writes_everything(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """The files that users rely on, the table, and nothing under a temporary name."""
    code, out, _ = call("predict", slide, "--bundle", bundle, "--out", tmp_path, "--teacher", "all", "--device", "cpu")
    assert code == 0
    assert "phantom.tif" in out
    assert {p.name for p in (tmp_path / "phantom").iterdir()} == {
        "prediction.json",
        "attention.h5",
        "attention.ome.tif",
        "attention.geojson",
        "teacher_attention.h5",
        "agreement.json",
        "overlay.png",
    }
    with (tmp_path / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    stored = json.loads((tmp_path / "phantom" / "prediction.json").read_text())
    assert float(row["probability_lesion"]) == pytest.approx(stored["probabilities"]["lesion"], abs=1e-6)
    assert (row["scope"], row["calibrated"]) == ("whole slide", "False")


def test_a_report_has_the_command_that_wrote_it(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    command = ("predict", slide, "--bundle", bundle, "--device", "cpu", "--runtime", "auto", "--mpp", "0.5")
    command += ("--teacher", "none")
    assert call(*command, "--out", tmp_path / "a", "--report", "--full-paths")[0] == 0
    page = (tmp_path / "a" / "phantom" / "report.html").read_text(encoding="utf-8")
    assert f"{' '.join(map(str, command))} --out {tmp_path / 'a'} --report" in page
    assert call(*command, "--out", tmp_path / "b")[0] == 0
    assert not (tmp_path / "b" / "phantom" / "report.html").exists()


def test_results_hold_no_folder_above_the_cohort(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """User names stand in absolute paths; --full-paths writes them."""
    out = tmp_path / "out"
    command = ("predict", slide, "--bundle", bundle, "--out", out, "--report", "--no-overlay")
    assert call(*command)[0] == 0
    texts = [path.read_text(encoding="utf-8") for path in out.rglob("*") if path.suffix in (".json", ".html", ".csv")]
    assert len(texts) == 3 and not any(str(folder) in text for text in texts for folder in (tmp_path, slide.parent))
    assert json.loads((out / "phantom" / "prediction.json").read_text())["path"] == "phantom.tif"
    assert call(*command, "--no-resume", "--full-paths")[0] == 0
    assert json.loads((out / "phantom" / "prediction.json").read_text())["path"] == str(slide)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(call: Call, slide: Path, tmp_path: Path) -> None:
    """Nothing is created either."""
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", tmp_path / "file", tmp_path / ("x" * 300), tmp_path / "a" / ("x" * 300)):
        for command in ("predict", "compare", "evaluate", "train", "bench"):
            code, _, err = call(command, slide, "--out", out)
            assert code == 2 and one_sentence(err) and "cannot be written" in err, command
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, colons no emoji, and control characters no commands."""
    name = "A [he] :smile: [/red] \\[b]"
    print_result(f"{name}: done")
    print_notice(name, f"and {name}\x1b[31m\udcff")
    printed = capsys.readouterr()
    assert printed.out == f"{name}: done\n"
    assert printed.err == f"{name}: and {name}\\x1b[31m\\xff\n"


def test_info_prints_resolution_and_its_source(call: Call, slide: Path) -> None:
    """JSON for scripts, lines for people."""
    code, out, _ = call("info", slide, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["mpp"] == [0.5, 0.5]
    assert facts["mpp source"] == "openslide"
    assert "1536 x 1024" in call("info", slide)[1]


def _not_a_slide(folder: Path) -> Path:
    path = folder / "text.svs"
    path.write_text("not a slide")
    return path


def _truncated(folder: Path) -> Path:
    complete = write_slide(folder, PhantomSlide("whole", NORMAL, 1, (768, 512)))
    path = folder / "truncated.tif"
    path.write_bytes(complete.read_bytes()[: complete.stat().st_size // 2])
    return path


def _no_mpp(folder: Path) -> Path:
    import tifffile

    path = folder / "no_mpp.tif"
    tifffile.imwrite(path, np.full((512, 768, 3), 200, np.uint8), tile=(256, 256), photometric="rgb", metadata=None)
    return path


def _glass(folder: Path) -> Path:
    path = folder / "glass.tif"
    write_pyramid(path, np.full((1024, 1536, 3), 242, np.uint8), 0.5)
    return path


def _too_coarse(folder: Path) -> Path:
    path = folder / "coarse.tif"
    write_pyramid(path, np.full((512, 768, 3), 180, np.uint8), 8.0)
    return path


BAD_SLIDES = [
    (_not_a_slide, "not a slide that OpenSlide can open"),
    (_truncated, "not truncated"),
    (_no_mpp, "pass --mpp"),
    (_glass, "no tissue found"),
    (_too_coarse, "too coarse for the student"),
    (lambda folder: folder / "absent.svs", "no such file"),
]


@pytest.mark.parametrize(("make", "expected"), BAD_SLIDES)
def test_bad_slides_are_listed_with_their_reason(
    call: Call, bundle: Path, tmp_path: Path, make: Callable[[Path], Path], expected: str
) -> None:
    """Exit code 3, one line in ``failures.csv``, one sentence on the screen, nothing half-written."""
    path = make(tmp_path)
    code, _, err = call("predict", path, "--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 3
    assert expected in err
    assert one_sentence(err)
    with (tmp_path / "out" / "failures.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["slide"] == path.name
    assert expected in row["reason"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"failures.csv"}


def test_teacher_needs_a_fine_scan(call: Call, bundle: Path, tmp_path: Path) -> None:
    """A 5x scan has a student, but no teacher, and says so."""
    path = tmp_path / "five.tif"
    pink = np.array([200, 120, 170]) + np.random.default_rng(0).integers(-20, 20, (768, 1024, 3))
    write_pyramid(path, pink.astype(np.uint8), 2.0)
    assert call("predict", path, "--bundle", bundle, "--out", tmp_path / "a", "--device", "cpu")[0] == 0
    code, _, err = call("predict", path, "--bundle", bundle, "--out", tmp_path / "b", "--teacher", "all")
    assert code == 3
    assert "too coarse for the teacher" in err


def test_no_mpp_is_mended_by_the_option_that_the_error_names(call: Call, bundle: Path, tmp_path: Path) -> None:
    """The same slide opens once its resolution is given."""
    path = _no_mpp(tmp_path)
    assert "not known" in call("info", path)[1]
    code, out, _ = call("info", path, "--mpp", "0.5", "--json")
    assert code == 0
    assert json.loads(out)["mpp source"] == "override"


def test_compare_writes_agreement_and_picture(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """The same figures as `predict --teacher all`, and who finds the lesions that lie beside the phantom."""
    code, out, err = call("compare", slide, "--bundle", bundle, "--out", tmp_path / "a", "--device", "cpu")
    assert code == 0 and "ρ" in out, err
    folder = tmp_path / "a" / "phantom"
    assert {"compare.png", "agreement.json", "prediction.json"} <= {file.name for file in folder.iterdir()}
    agreement = json.loads((folder / "agreement.json").read_text())
    assert {"n_lesion_patches", "pointing_student", "lesion_auroc_teacher"} <= set(agreement)
    call("predict", slide, "--bundle", bundle, "--out", tmp_path / "b", "--teacher", "all", "--device", "cpu")
    plain = json.loads((tmp_path / "b" / "phantom" / "agreement.json").read_text())
    for name in ("spearman", "jaccard_top10", "js_divergence"):
        assert agreement[name] == pytest.approx(plain[name], abs=1e-5)


def test_compare_can_ask_the_teacher_about_the_top_patches_only(
    call: Call, slide: Path, bundle: Path, tmp_path: Path
) -> None:
    code, out, _ = call(
        "compare", slide, "--bundle", bundle, "--out", tmp_path, "--teacher", "top-3", "--device", "cpu"
    )
    assert code == 0 and "over 3 of" in out
    assert json.loads((tmp_path / "phantom" / "agreement.json").read_text())["n_patches"] == 3
    code, _, err = call("compare", slide, "--bundle", bundle, "--out", tmp_path, "--teacher", "none")
    assert code == 2 and one_sentence(err) and "nothing to compare" in err
    alone = untrained_bundle(tmp_path / "alone", teacher=False).path
    code, _, err = call("compare", slide, "--bundle", alone, "--out", tmp_path)
    assert code == 2 and one_sentence(err) and "teacher" in err


def test_a_resolution_that_no_slide_has_is_refused(call: Call, slide: Path) -> None:
    code, _, err = call("info", slide, "--mpp", "0")
    assert code == 2 and "--mpp" in err and "0.02" in err


def test_an_answer_given_earlier_is_used_and_named_as_the_source(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolution that was given in the window holds for the command line too; the option overrides it."""
    monkeypatch.setenv("NAPARI_LRMIL_CONFIG", str(tmp_path / "config"))
    path = _no_mpp(tmp_path)
    fingerprint = json.loads(call("info", path, "--json")[1])["fingerprint"]
    SettingsStore().remember_mpp(fingerprint, 0.37)
    facts = json.loads(call("info", path, "--json")[1])
    assert facts["mpp"] == [0.37, 0.37] and facts["mpp source"] == "remembered"
    assert json.loads(call("info", path, "--mpp", "0.5", "--json")[1])["mpp source"] == "override"


def test_one_bad_slide_stops_nobody(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """The good slide is predicted, the bad one is listed, the exit code says that some failed."""
    bad = _not_a_slide(tmp_path)
    code, _, _ = call("predict", bad, slide, "--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 3
    assert (tmp_path / "out" / "phantom" / "prediction.json").exists()
    assert (tmp_path / "out" / "failures.csv").exists()


def test_a_damaged_bundle_is_a_wrong_call(call: Call, slide: Path, tmp_path: Path) -> None:
    """Another schema version, and weights that do not match their hash: exit code 2 and nothing written."""
    folder = untrained_bundle(tmp_path / "bundle").path
    weights = folder / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = call("predict", slide, "--bundle", folder, "--out", tmp_path / "out")
    assert (code, one_sentence(err)) == (2, True)
    assert "does not match the hash" in err
    card = json.loads((folder / "lrmil.json").read_text())
    (folder / "lrmil.json").write_text(json.dumps(card | {"schema_version": 99}))
    code, _, err = call("predict", slide, "--bundle", folder, "--out", tmp_path / "out")
    assert (code, one_sentence(err)) == (2, True)
    assert "schema version 99" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["absent.tif,p1,normal,train"], "do not exist"),
        (["{slide},p1,normal,dev"], "unknown split 'dev'"),
        (["{slide},p1,normal,train"], "has only normal"),
        (["{slide},p1,normal,train", "{other},p1,lesion,val"], "patient p1 is in train and val"),
    ],
)
def test_unusable_cohorts_are_wrong_calls(
    call: Call, slide: Path, tmp_path: Path, rows: list[str], expected: str
) -> None:
    """Exit code 2, one sentence, no run folder."""
    other = tmp_path / "other.tif"
    other.touch()
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(["slide,patient,label,split", *rows]).format(slide=slide, other=other))
    code, _, err = call("train", table, "--out", tmp_path / "run")
    assert (code, one_sentence(err)) == (2, True)
    assert expected in err
    assert not (tmp_path / "run").exists()


def test_unknown_device_and_choice(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """What there is on this machine is listed."""
    code, _, err = call("predict", slide, "--bundle", bundle, "--out", tmp_path, "--device", "tpu")
    assert (code, one_sentence(err)) == (2, True)
    assert "available: auto, cpu" in err
    code, _, err = call("predict", slide, "--bundle", bundle, "--out", tmp_path, "--teacher", "some")
    assert (code, one_sentence(err)) == (2, True)
    assert "none, all, or top-K" in err


def test_phantom_and_features(call: Call, tmp_path: Path) -> None:
    """A phantom cohort and its features in TRIDENT's layout; a second call finds them there."""
    code, out, _ = call("phantom", tmp_path / "cohort", "--slides", 3, "--size", "1024x768", "--seed", 4)
    assert code == 0
    from napari_lrmil.core.encoders import save_encoder
    from support.networks import untrained_encoder

    weights = tmp_path / "untrained.safetensors"
    save_encoder(weights, untrained_encoder())
    table = tmp_path / "cohort" / "cohort.csv"
    command = ("features", table, "--encoder", weights, "--patch-px", 128, "--out", tmp_path / "f")
    code, out, _ = call(*command)
    assert (code, "3 of 3 slides" in out) == (0, True)
    modified = {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("features_*/*.h5")}
    assert {p.parent.name for p in modified} == {"features_untrained"}
    assert {p.parent.parent.name for p in modified} == {"20x_128px_0px_overlap"}
    assert call(*command)[0] == 0
    assert modified == {p: p.stat().st_mtime_ns for p in modified}


def test_phantom_variants(call: Call, tmp_path: Path) -> None:
    """Variants combine on each slide, and the table names the files as they are; a wrong one is told first."""
    command = ("phantom", tmp_path / "c", "--slides", 1, "--size", "640x448", "--seed", 4)
    code, _, _ = call(*command, "--variant", "40x", "--variant", "bounds")
    assert code == 0
    (row,) = csv.DictReader((tmp_path / "c" / "cohort.csv").read_text().splitlines())
    code, out, _ = call("info", tmp_path / "c" / row["slide"], "--json")
    assert row["slide"].endswith(".scn")
    assert (code, json.loads(out)["vendor"]) == (0, "leica")
    code, _, err = call(*command, "--variant", "fax")
    assert (code, one_sentence(err), "'fax'" in err) == (2, True, True)


@pytest.mark.parametrize("size", ["4096", "0x3", "axb"])
def test_impossible_phantom_size(call: Call, tmp_path: Path, size: str) -> None:
    """A size is width x height."""
    code, _, err = call("phantom", tmp_path / "c", "--size", size)
    assert code == 2
    assert "width x height" in " ".join(err.replace("│", " ").split())


def test_two_slides_of_one_name_do_not_overwrite_each_other(
    call: Call, slide: Path, bundle: Path, tmp_path: Path
) -> None:
    """The second is a failure with its reason; the first one's result stays."""
    other = tmp_path / "other" / slide.name
    other.parent.mkdir()
    other.symlink_to(slide)
    code, _, err = call("predict", slide, other, "--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 3
    assert "would overwrite" in err
    assert (tmp_path / "out" / "phantom" / "prediction.json").exists()


def test_tables_keep_what_earlier_calls_did(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """A second call into the same folder adds to both tables; a slide that is mended leaves the failures."""
    bad, options = _not_a_slide(tmp_path), ("--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert call("predict", bad, *options)[0] == 3
    assert call("predict", slide, *options)[0] == 0
    with (tmp_path / "out" / "failures.csv").open() as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["text.svs"]
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["phantom"]
    bad.unlink()
    bad.symlink_to(slide)
    assert call("predict", bad, *options)[0] == 0
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_cohort_table_gives_the_resolution(call: Call, bundle: Path, tmp_path: Path) -> None:
    """The column ``mpp`` counts for predict as it does for train."""
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide,patient,label,mpp\n{_no_mpp(tmp_path).name},p1,normal,0.5\n")
    _, _, err = call("predict", table, "--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    assert "no tissue found" in err  # grey, but its resolution was taken


def test_an_unusable_folder_is_told_before_any_work(call: Call, slide: Path, bundle: Path, tmp_path: Path) -> None:
    """A file in the place of the results' folder is a wrong call."""
    (tmp_path / "out").touch()
    code, out, err = call("predict", slide, "--bundle", bundle, "--out", tmp_path / "out")
    assert (code, out, one_sentence(err)) == (2, "", True)
    assert "choose another" in err


# ---------------------------------------------------------------- train


@pytest.mark.slow
def test_train_says_that_some_slides_failed(call: Call, small_cohort: Path, tmp_path: Path) -> None:
    """Exit code 3, and the folder of a series lists what failed in its runs, each slide once."""
    from napari_lrmil.core.encoders import save_encoder
    from support.networks import untrained_encoder

    shutil.copytree(small_cohort.parent, tmp_path / "cohort")
    table, out = tmp_path / "cohort" / "cohort.csv", tmp_path / "run"
    table.write_text(table.read_text().replace(",test", ",train") + "broken.tif,p_broken,normal,train\n")
    (tmp_path / "cohort" / "broken.tif").write_bytes(b"no slide")
    save_encoder(tmp_path / "untrained.safetensors", untrained_encoder())
    keys = f"""encoder.teacher={tmp_path / "untrained.safetensors"} hr_patch_px=64 lr_patch_px=64 bootstrap=100 seeds=2
        teacher.epochs=1 teacher.min_epochs=1 stage1.epochs=0 stage2.init=frozen_head stage3.epochs=0
        baselines=[]"""
    settings = [word for key in keys.split() for word in ("--set", key)]
    code, _, err = call("train", table, "--out", out, "--device", "cpu", *settings)
    assert (code, "1 slide could not be used" in err) == (3, True)
    single = [(out / "runs" / name / "failures.csv").read_text() for name in ("seed0", "seed1")]
    assert single[0].startswith("slide,step,reason\nbroken,features,")
    assert (out / "failures.csv").read_text() == single[0] == single[1]
    assert "could not be used" in (out / "report.html").read_text()


# ---------------------------------------------------------------- evaluate


@pytest.fixture(scope="module")
def small_cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of six phantom slides: four for test, two for validation."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), test=4, val=2)


def test_evaluate_measures_both_networks(call: Call, small_cohort: Path, bundle: Path, tmp_path: Path) -> None:
    """Figures of the asked split alone, with agreement and cost; nothing is fitted on it; a report."""
    code, out, err = call("evaluate", small_cohort, "--bundle", bundle, "--out", tmp_path, "--device", "cpu")
    assert code == 0
    assert "report.html" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    (little,) = (text for text in metrics.pop("warnings") if "little tissue" in text)
    assert "of 4 slides" in little and little in err  # of all slides, not of the first alone
    assert {method: list(splits) for method, splits in metrics.items()} == {"teacher": ["test"], "student": ["test"]}
    student, teacher = metrics["student"]["test"], metrics["teacher"]["test"]
    assert student["auroc"]["n_slides"] == 4
    assert not student["calibrated"]  # the bundle has no temperature, and none is fitted on test slides
    assert student["agreement"]["spearman"] is not None
    for counted in ("patches_per_slide", "pixels_per_slide", "cpu_seconds_per_slide"):
        assert 0 < student["cost"][counted] < teacher["cost"][counted]
    assert "LR student" in (tmp_path / "report.html").read_text()


def test_evaluate_all_slides_without_the_teacher(call: Call, small_cohort: Path, bundle: Path, tmp_path: Path) -> None:
    """Every slide of the table counts once, whatever its split."""
    options = ["--out", tmp_path, "--device", "cpu", "--split", "all", "--no-teacher"]
    assert call("evaluate", small_cohort, "--bundle", bundle, *options)[0] == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) - {"warnings"} == {"student"}
    assert metrics["student"]["all"]["auroc"]["n_slides"] == 6


def test_evaluate_by_columns(call: Call, small_cohort: Path, bundle: Path, tmp_path: Path) -> None:
    """Figures of each value, with what leaves an AUROC undefined; an unknown column is refused before any work."""
    lines = small_cohort.read_text().splitlines()
    sites = ["site", *("A" if ",test" in line and i % 2 else "" for i, line in enumerate(lines[1:]))]
    table = small_cohort.with_name("sites.csv")
    table.write_text("\n".join(f"{line},{site}" for line, site in zip(lines, sites, strict=True)))
    command = ["evaluate", table, "--bundle", bundle, "--device", "cpu", "--no-teacher"]
    code, out, _ = call(*command, "--out", tmp_path, "--by", "Site", "--by", "label", "--split", "all")
    assert code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["value"] for entry in metrics["by"]["site"]] == ["A", "(empty)"]
    assert [entry["n_slides"] for entry in metrics["by"]["site"]] == [sites.count("A"), 6 - sites.count("A")]
    assert "by label" in out and out.count("AUROC undefined (one class only: normal)") == 1
    assert "one class only: lesion" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "groups.csv").read_text().startswith("column,value,method,n_slides,n_patients,n_normal,n_lesion")
    code, _, err = call(*command, "--out", tmp_path / "other", "--by", "scanner")
    assert code == 2 and one_sentence(err)
    assert "no column named 'scanner' to group by; the columns are slide, patient, label, split, site" in err
    assert not (tmp_path / "other").exists()


def test_nothing_is_fetched_for_a_teacher_that_was_not_asked_for(
    call: Call, small_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that only names its teacher's encoder: the student alone, unless asked; then its terms come first."""
    from napari_lrmil.core import encoders
    from napari_lrmil.core.models import networks

    def fetch(name: str) -> None:
        raise EncoderError(f"looking for {name}")

    monkeypatch.setattr(encoders, "encoder_notice", lambda name: f"{name}: its terms")
    monkeypatch.setattr(networks, "resolve_encoder", fetch)
    named = untrained_bundle(tmp_path / "b", teachers=Borrowed()).path
    command = ["evaluate", small_cohort, "--bundle", named, "--out", tmp_path / "out", "--device", "cpu"]
    code, _, err = call(*command)
    assert code == 0 and "without its weights: the student is evaluated alone" in err
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) - {"warnings"} == {"student"}
    for asking in ([*command, "--teacher"], ["predict", small_cohort, "--bundle", named, "--teacher", "all"]):
        code, _, err = call(*asking)
        assert code == 2 and err.index("lazyslide:x: its terms") < err.index("looking for lazyslide:x")


def test_evaluate_goes_on_past_a_broken_slide(call: Call, small_cohort: Path, bundle: Path, tmp_path: Path) -> None:
    """The others are evaluated, the broken one is listed with its reason."""
    folder = tmp_path / "cohort"
    shutil.copytree(small_cohort.parent, folder)
    broken = sorted(folder.glob("test*.tif"))[0]
    broken.write_bytes(b"no slide")
    out = tmp_path / "out"
    code, _, err = call("evaluate", folder / "cohort.csv", "--bundle", bundle, "--out", out, "--device", "cpu")
    assert code == 3
    assert broken.stem in err
    assert broken.stem in (out / "failures.csv").read_text()
    assert json.loads((out / "metrics.json").read_text())["student"]["test"]["auroc"]["n_slides"] == 3


@pytest.mark.parametrize(
    ("options", "label", "expected"),
    [
        (["--split", "train"], "normal", "there are val, test"),
        (["--split", "everything"], "normal", "no slide of split everything"),
        ([], "carcinoma", "labelled carcinoma"),
    ],
)
def test_evaluate_refuses_what_cannot_be_measured(
    call: Call, small_cohort: Path, bundle: Path, tmp_path: Path, options: list[str], label: str, expected: str
) -> None:
    """One sentence, nothing written."""
    table = small_cohort.with_name(f"{label}.csv")
    table.write_text(small_cohort.read_text().replace(",normal,", f",{label},"))
    code, _, err = call("evaluate", table, "--bundle", bundle, "--out", tmp_path / "out", *options)
    assert code not in (0, 3)
    assert one_sentence(err)
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_long_work_leaves_notes_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stage, how far, and the last figure; nothing of the patches of a single slide, and nothing at all when quiet."""
    monkeypatch.setattr(console, "NOTE_INTERVAL_S", -1.0)
    events = [Progress("stage2", 1, 9, "epochs"), Progress("slide_3", 5, 8), Metric("stage2", "val/auroc", 0.875, 1)]
    events += [Progress("stage2", 2, 9, "epochs"), Finished("run")]
    assert console.show_progress(iter_closing(events), "train", quiet=False) == "run"
    notes = capfd.readouterr().err
    assert "stage2: 1 of 9 epochs\n" in notes
    assert "stage2: 2 of 9 epochs, validation AUROC 0.875\n" in notes
    assert "slide_3" not in notes
    assert console.show_progress(iter_closing(events), "predict") == "run"
    assert capfd.readouterr().err == ""


def test_a_message_names_its_subject_before_a_colon(capfd: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = [Notice("little tissue", "a[1].svs"), Notice("about the model m: a toy")]
    events += [Failed("no such file", "b.svs"), Finished("done")]
    console.show_progress(iter_closing(events), "predict")
    assert capfd.readouterr().err.splitlines() == [
        "a[1].svs: little tissue",
        "about the model m: a toy",
        "b.svs: no such file",
    ]


def iter_closing(events: list[Event]) -> Iterator[Event]:
    """Return a stream that can be closed, as all work is."""
    yield from events


def test_version_and_debug(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is told; a traceback comes with --debug, before or after the command."""
    assert call("--version")[:2] == (0, f"napari-lrmil {__version__}\n")
    missing = tmp_path / "missing.svs"
    for command in (["--debug", "info", missing], ["info", missing, "--debug"]):
        monkeypatch.setattr(sys, "argv", ["napari-lrmil", *map(str, command)])
        with pytest.raises(LrmilError):
            cli.main()
    code, _, err = call("info", missing)
    assert code != 0
    assert one_sentence(err)


def test_verbose_prints_steps_and_choices_and_changes_nothing_else(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    from napari_lrmil.core.phantom import PhantomSlide, write_slide

    slide = write_slide(tmp_path, PhantomSlide("verbose", "normal", 3, (1536, 1280), 0.5))
    code, quiet_out, quiet_err = call("predict", slide, "--out", tmp_path / "quiet", "--device", "cpu")
    assert code == 0 and "HR patches" not in quiet_err
    code, out, err = call("predict", slide, "--out", tmp_path / "verbose", "--device", "cpu", "--verbose")
    assert code == 0 and "HR patches" in err and "tissue done in" in " ".join(err.split())
    assert "runtime torch" in err or "runtime openvino" in err
    assert out.replace("verbose/", "quiet/") == quiet_out.replace("verbose/", "quiet/")


def test_numpy_computes_with_one_thread_unless_the_user_says_otherwise() -> None:
    """OpenBLAS reads the variable when NumPy is imported, so the command line must not import it before."""
    script = """
import os, sys
from napari_lrmil import cli
is_imported = "numpy" in sys.modules
sys.argv = ["napari-lrmil", "--version"]
try:
    cli.main()
except SystemExit:
    print(is_imported, os.environ["OPENBLAS_NUM_THREADS"])
"""
    for stated, expected in ({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3"):
        variables = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"} | stated
        done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f"False {expected}", done.stderr
