"""Cohorts on the command line: bad slides stop no other, a second call completes the first, results are kept."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from napari_lrmil.cli import console
from napari_lrmil.core.cohort.task import SerialBackend
from napari_lrmil.core.events import Progress
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.results.schema import CohortFile, PredictionFile
from support.networks import untrained_bundle, untrained_encoder
from support.plain_tiffs import change
from support.plain_tiffs import write_slide as write_plain_slide
from support.processes import ended, run_command_up_to, start

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
SIZE = (1024, 768)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an untrained bundle."""
    return untrained_bundle(tmp_path_factory.mktemp("bundle")).path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three small phantom slides; one has spaces and umlauts in its name."""
    folder = tmp_path_factory.mktemp("slides")
    for number, name in enumerate(("first", "Präparat 2 – été", "third")):
        write_slide(folder, PhantomSlide(name, LESION, number, SIZE))
    return folder


@pytest.fixture
def bad_slides(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bad_slides

    return bad_slides


def common_options(bundle: Path, out: Path) -> tuple[object, ...]:
    return "--bundle", bundle, "--out", out, "--device", "cpu"


def failures(out: Path) -> dict[str, tuple[str, str]]:
    """Return file name -> (step, reason); each slide has one row."""
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["slide"] for row in rows}) == len(rows)
    return {row["slide"]: (row["step"], row["reason"]) for row in rows}


def result_times(out: Path) -> dict[str, int]:
    """Return slide -> modification time of its result, ns."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/prediction.json")}


@pytest.mark.slow
def test_a_slide_that_would_crash_the_library_has_a_reason(slides: Path, bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(slides / "first.tif", folder / name)
    change(write_plain_slide(folder / "crasher.svs"), 2, {"TileWidth": 65535, "TileLength": 1})
    call = [sys.executable, "-m", "napari_lrmil", "predict", folder, *common_options(bundle, out), "--workers", "2"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=240)
    assert done.returncode == 3, done.stderr
    assert set(result_times(out)) == {"a", "b"}
    assert {name: step for name, (step, _) in failures(out).items()} == {"crasher.svs": "open"}
    assert "65535 x 1 px" in failures(out)["crasher.svs"][1]


@pytest.mark.slow
def test_ten_bad_slides_stop_nobody(slides: Path, bundle: Path, bad_slides: ModuleType, tmp_path: Path) -> None:
    """Two workers: every good slide has a result, every bad one a row; a second call computes nothing."""
    before = bad_slides.as_ordinary_user()
    folder, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(slides, folder)
    bad = bad_slides.make_bad_slides(folder / "first.tif", folder)
    if before is None:
        bad.pop("unreadable").unlink()  # root reads everything, and cannot be kept from it here
    call = [*(before or []), sys.executable, "-m", "napari_lrmil", "predict", folder, *common_options(bundle, out)]
    earlier: dict[str, int] = {}
    for options in ("--workers", "2"), ():
        done = subprocess.run([*call, *options], capture_output=True, text=True, timeout=240)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        rows = failures(out)
        steps = {kind: rows[path.name][0] for kind, path in bad.items()}
        assert steps == {kind: step for kind, step in bad_slides.STEPS.items() if kind in bad}
        assert len(rows) == len(bad)
        assert all(reason and "\n" not in reason for _, reason in rows.values())
        assert set(result_times(out)) == {"first", "Präparat 2 – été", "third"}
        earlier = earlier or result_times(out)
        summary = json.loads((out / "cohort.json").read_text())
        assert (summary["done"], summary["already_there"]) == ((3, 0) if options else (0, 3))
    assert result_times(out) == earlier
    assert "permission" in rows[bad["unreadable"].name][1] or before is None
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == sorted(earlier)


def test_the_end_of_a_cohort_says_which_slides_have_which_warning(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    """A warning that several slides share is printed once while they are computed; the end counts its slides."""
    folder, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(slides, folder)
    write_slide(folder, PhantomSlide("wide", LESION, 4, (3072, 2304)))
    for _ in range(2):  # also of results that were already there
        code, _, err = call("predict", folder, *common_options(bundle, out), "--no-overlay")
        (line,) = (line for line in err.splitlines() if "3 of 4 slides" in line)
        assert code == 0 and "first, third): little tissue: " in line and "LR patches, fewer than 10" in line
        assert "predictions.csv lists the warnings of each slide" in err
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        warnings = {row["slide"]: row["warnings"] for row in csv.DictReader(file)}
    assert {name for name, text in warnings.items() if "little tissue" in text} == set(warnings) - {"wide"}
    for name, text in warnings.items():
        assert text == " | ".join(PredictionFile.read(out / name).warnings)
    assert "slides: " not in call("predict", folder / "first.tif", *common_options(bundle, out))[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere workers are not forked from a server")
def test_a_command_with_workers_loads_no_numpy(slides: Path, bundle: Path, tmp_path: Path) -> None:
    words = ["predict", slides, *common_options(bundle, tmp_path), "--workers", 2]
    code = f"""
import sys
from napari_lrmil.cli import main
sys.argv = {["napari-lrmil", *map(str, words)]!r}
try:
    main()
except SystemExit as end:
    assert not end.code
assert not {{"numpy", "openvino", "shapely", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert len(list(tmp_path.glob("*/prediction.json"))) == 3


def test_a_broken_model_ends_a_command_with_workers(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    weights = next(broken.glob("*student*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, errors = call("predict", slides, *common_options(broken, tmp_path / "out"), "--workers", 2)
    assert code == 2
    assert weights.name in errors
    assert not list((tmp_path / "out").glob("*/*"))


def test_an_unknown_reader_is_a_wrong_call(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    code, _, err = call("predict", slides, *common_options(bundle, tmp_path), "--reader", "fast")
    assert code == 2 and "auto, openslide, tiles" in err and not result_times(tmp_path)


def test_an_unknown_runtime_is_a_wrong_call(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    code, _, err = call("predict", slides, *common_options(bundle, tmp_path), "--runtime", "fast")
    assert code == 2 and "auto, torch, openvino" in err and not result_times(tmp_path)


@dataclass
class Rerun:
    """Repeated ``predict`` calls on one slide into one folder."""

    call: Call
    slide: Path
    bundle: Path
    out: Path
    written: int = 0  # when the last result was written

    @property
    def result(self) -> Path:
        return self.out / "s" / "prediction.json"

    def computes(self, *options: object) -> bool:
        """Call ``predict`` and return whether it computed the slide."""
        code, output, err = self.call("predict", self.slide, *common_options(self.bundle, self.out), *options)
        assert code == 0, err
        before, self.written = self.written, result_times(self.out)["s"]
        assert ("already there" in output) == (self.written == before)
        return self.written != before

    def reuses(self, *options: object) -> bool:
        return not self.computes(*options)

    def change_result(self, **content: object) -> None:
        """Change keys of the stored result, as if an earlier call had written them."""
        self.result.write_text(json.dumps(json.loads(self.result.read_text(encoding="utf-8")) | content))
        self.written = result_times(self.out)["s"]

    def stored(self, *keys: str) -> tuple[object, ...]:
        content = json.loads(self.result.read_text(encoding="utf-8"))
        return tuple(content[key] for key in keys)


@pytest.fixture
def rerun(call: Call, slides: Path, tmp_path: Path) -> Rerun:
    slide = tmp_path / "s.tif"
    shutil.copyfile(slides / "first.tif", slide)
    return Rerun(call, slide, untrained_bundle(tmp_path / "bundle").path, tmp_path / "out")


@pytest.mark.slow
def test_options_decide_which_results_are_reused(rerun: Rerun) -> None:
    """Resolution, report, reader, runtime and teacher must match."""
    computes, reuses = rerun.computes, rerun.reuses
    assert computes() and reuses()
    assert computes("--no-resume") and reuses()
    assert computes("--mpp", "0.4") and reuses("--mpp", "0.4") and computes()
    assert computes("--report") and reuses("--report")
    assert reuses("--reader", "tiles")  # auto chose it
    assert computes("--reader", "openslide") and reuses("--reader", "openslide") and reuses()
    assert rerun.stored("reader", "reader_reason") == ("openslide", "asked for")
    assert computes("--runtime", "torch", "--no-resume") and reuses("--runtime", "torch") and reuses()
    assert rerun.stored("runtime", "precision", "runtime_reason") == ("torch", "float32", "asked for")
    rerun.change_result(runtime="openvino", precision="bfloat16")
    assert reuses() and computes("--runtime", "torch")  # only results of torch, the reference, are reused for torch
    assert computes("--teacher", "top-3") and reuses("--teacher", "top-3")
    assert computes("--teacher", "all") and reuses("--teacher", "all")
    assert reuses()  # for the student alone: computing it again would delete the teacher's part
    assert computes("--teacher", "top-2")


def test_a_result_without_overlay_is_complete_only_if_none_is_wanted(rerun: Rerun) -> None:
    picture = rerun.result.parent / "overlay.png"
    assert rerun.computes("--no-overlay") and not picture.exists() and rerun.reuses("--no-overlay")
    assert rerun.computes() and picture.exists() and rerun.reuses() and rerun.reuses("--no-overlay")
    assert rerun.computes("--no-overlay", "--no-resume") and not picture.exists(), "the picture of an older result"


def test_slide_model_and_region_decide_which_results_are_reused(rerun: Rerun, slides: Path, tmp_path: Path) -> None:
    """The fingerprint of the pixels and the hash of the model must match; regions are always computed."""
    computes, reuses = rerun.computes, rerun.reuses
    assert computes() and reuses()
    shutil.copyfile(slides / "third.tif", rerun.slide)
    assert computes() and reuses()
    rerun.result.write_text("{broken")
    assert computes()
    untrained_bundle(tmp_path / "bundle", temperature=2.0)
    assert computes() and reuses()
    regions = tmp_path / "r.geojson"
    square = [[0, 0], [1024, 0], [1024, 768], [0, 768], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [square]}
    regions.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    assert computes("--roi", regions) and computes("--roi", regions) and computes()


def test_results_of_a_newer_version_fail_their_slide_and_stay(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    """Neither a second call nor `compare` replaces them, and the table leaves them out."""
    expected = "schema version 2, and napari-lrmil .* reads versions up to 1"
    assert call("predict", slides / "first.tif", *common_options(bundle, tmp_path))[0] == 0
    newer = tmp_path / "first" / "prediction.json"
    newer.write_text(json.dumps(json.loads(newer.read_text(encoding="utf-8")) | {"schema_version": 2}))
    before = newer.read_bytes()
    code, out, err = call("predict", slides, *common_options(bundle, tmp_path))
    assert (code, "2 of 3 slides done" in err, "already there" in out) == (3, True, False)
    assert list(failures(tmp_path)) == ["first.tif"]
    step, reason = failures(tmp_path)["first.tif"]
    assert step == "open" and str(newer) in reason and re.search(expected, reason)
    assert CohortFile.read(tmp_path).retried == 0, "a retry would fail again"
    assert re.search(f"not in predictions.csv: .*{expected}", err) and newer.read_bytes() == before
    code, _, err = call("compare", slides / "first.tif", *common_options(bundle, tmp_path))
    assert code == 1 and re.search(expected, err) and newer.read_bytes() == before
    assert call("predict", slides / "first.tif", *common_options(bundle, tmp_path), "--no-resume")[0] == 0
    assert PredictionFile.read(tmp_path / "first").schema_version == 1
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_broken_results_of_another_slide_are_reported_and_left_out_of_the_table(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "prediction.json").write_text("{broken")
    code, _, err = call("predict", slides / "first.tif", *common_options(bundle, tmp_path))
    assert code == 0 and re.search(r"not in predictions.csv: .*another.*cannot be read", err)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["first"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_keeps_what_is_done_and_lists_it(slides: Path, bundle: Path, tmp_path: Path) -> None:
    """Exit code 130, a table of what is done, nothing half-written, no line for what was not tried."""
    folder, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(slides, folder)
    big = write_slide(folder, PhantomSlide("second", LESION, 9, (3072, 2304)))
    (folder / "a.svs").write_text("no slide")
    command = tuple(map(str, ("predict", folder, *common_options(bundle, out))))
    process = start(run_command_up_to, command, big.stem, tmp_path / "reached", tmp_path / "said")
    while not (tmp_path / "reached").exists():
        process.join(0.01)
        assert process.exitcode is None, (tmp_path / "said").read_text()
    os.kill(process.pid or 0, signal.SIGINT)
    assert ended(process) == 130
    err = (tmp_path / "said").read_text()
    assert "cancelled" in err and "Traceback" not in err
    done = result_times(out)
    assert set(done) == {"first", "Präparat 2 – été"}
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert {row["slide"] for row in csv.DictReader(file)} == set(done)
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]
    assert not (out / "failures.csv").exists()  # its second try was to come


def test_partial_files_of_a_killed_call_are_removed(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    from napari_lrmil.core.atomic_files import atomic_write_folder

    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with atomic_write_folder(tmp_path / "first", (), "x") as partial:
        whose = [str(os.getppid()), gone.stdout.strip()]
        names = [partial.name.replace(str(os.getpid()), number) for number in whose]
        names.append(names[1].replace(".first.", ".another."))
    for name in names:
        (tmp_path / name / "deep").mkdir(parents=True)
    assert call("predict", slides / "first.tif", *common_options(bundle, tmp_path))[0] == 0
    left = {path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")}
    assert left == {names[0], names[2]}  # of a process that is alive, and of a slide of another call


def test_answers_of_another_model_are_told_before_they_are_replaced_and_in_the_table(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    """Bundles of two runs can have the same name: the hash tells them apart."""
    out, other = tmp_path / "out", untrained_bundle(tmp_path / "other", lr_mpp=4.0)
    both = (slides / "first.tif", slides / "third.tif")
    assert "another model" not in call("predict", *both, *common_options(bundle, out))[2]
    code, _, err = call("predict", both[0], *common_options(other.path, out))
    said = " ".join(err.split())
    assert code == 0 and "are replaced: " in said and "for 1 slide; use another --out to keep them" in said
    assert "predictions.csv holds answers of 2 models" in said
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        models = {row["slide"]: row["bundle_sha256"] for row in csv.DictReader(file)}
    assert models == {"first": other.sha256, "third": Bundle(bundle).sha256}


def test_a_table_needs_no_more_than_slides_and_a_missing_one_stops_nobody(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide\n{slides / 'first.tif'}\nabsent.svs\n{slides / 'third.tif'}\n")
    code, _, err = call("predict", table, *common_options(bundle, tmp_path / "out"))
    assert code == 3
    assert list(failures(tmp_path / "out")) == ["absent.svs"]
    assert set(result_times(tmp_path / "out")) == {"first", "third"}
    assert "2 of 3 slides done, 0 already there, 1 failed" in err


@pytest.mark.slow
def test_features_of_a_folder_in_two_processes(call: Call, slides: Path, tmp_path: Path) -> None:
    """Equal to features of one process; a broken slide is listed with its step, and existing files are kept."""
    from napari_lrmil.core.encoders import save_encoder
    from napari_lrmil.core.features.bag import read_bag

    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    (folder / "text.svs").write_text("no slide")
    save_encoder(tmp_path / "e.safetensors", untrained_encoder())
    command = ("features", folder, "--encoder", tmp_path / "e.safetensors", "--patch-px", 128, "--device", "cpu")
    for out, options in (tmp_path / "two", ("--workers", 2)), (tmp_path / "one", ()):
        code, output, _ = call(*command, "--out", out, *options)
        assert (code, "3 of 4 slides" in output) == (3, True)
        assert failures(out)["text.svs"][0] == "open"
    single, parallel = (sorted((tmp_path / name).rglob("features_*/*.h5")) for name in ("one", "two"))
    assert [path.name for path in single] == [path.name for path in parallel] and len(single) == 3
    for a, b in zip(map(read_bag, single), map(read_bag, parallel), strict=True):
        np.testing.assert_array_equal(a.coords, b.coords)
        np.testing.assert_allclose(a.features, b.features, atol=1e-5)
    before = [path.stat().st_mtime_ns for path in parallel]
    code, output, _ = call(*command, "--out", tmp_path / "two")
    assert code == 3 and output.count("already there") == 3
    assert [path.stat().st_mtime_ns for path in parallel] == before


def test_predict_on_a_cluster_resolves_relative_paths(
    call: Call, slides: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(slides.parent)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", silence_logs=50
    ) as cluster:
        monkeypatch.setattr(SerialBackend, "run", None)  # this process must not compute
        code, _, err = call(
            "predict", slides.name, *common_options(bundle, tmp_path), "--scheduler", cluster.scheduler_address
        )
    assert code == 0, err
    assert len(result_times(tmp_path)) == 3
    assert "dask cluster at" in json.loads((tmp_path / "cohort.json").read_text())["engine"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--memory", "much"), "such as 1500MB"),
        (("--scheduler", "tcp://127.0.0.1:9", "--workers", "2"), "where they are started"),
        (("--scheduler", "slurm:absent.yaml"), "expected YAML"),
    ],
)
def test_wrong_execution_options_are_wrong_calls(
    call: Call, slides: Path, bundle: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    code, _, err = call("predict", slides, *common_options(bundle, tmp_path), *options)
    assert code == 2 and expected in err and not result_times(tmp_path)


def test_the_time_left_is_printed_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "NOTE_INTERVAL_S", -1.0)
    lefts = (None, 41.0, 400.0, 7800.0, 200_000.0)
    events = (Progress("cohort", done, 9, "slides", left) for done, left in enumerate(lefts))
    console.show_progress(events, "predict", quiet=False)
    assert capfd.readouterr().err.splitlines() == [
        "predict · cohort: 0 of 9 slides",
        "predict · cohort: 1 of 9 slides, 41 s left",
        "predict · cohort: 2 of 9 slides, 7 min left",
        "predict · cohort: 3 of 9 slides, 2 h 10 min left",
        "predict · cohort: 4 of 9 slides, 2 d 7 h left",
    ]
