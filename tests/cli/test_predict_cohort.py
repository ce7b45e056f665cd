"""Cohorts on the command line: bad slides stop nobody, a second call does what is missing, nothing done is lost."""

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
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from napari_lrmil.cli import console
from napari_lrmil.core.cohort.task import SerialBackend
from napari_lrmil.core.events import Progress
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.results.schema import CohortFile, PredictionFile
from support.networks import untrained_bundle, untrained_encoder
from support.processes import ended, run_command_up_to, start

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[1]
SIZE = (1024, 768)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an untrained bundle."""
    return untrained_bundle(tmp_path_factory.mktemp("bundle")).path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three small phantom slides, one of them with a name that is not plain."""
    folder = tmp_path_factory.mktemp("slides")
    for number, name in enumerate(("first", "Präparat 2 – été", "third")):
        write_slide(folder, PhantomSlide(name, LESION, number, SIZE))
    return folder


@pytest.fixture
def bad_slides(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bad_slides

    return bad_slides


def words(bundle: Path, out: Path) -> tuple[object, ...]:
    return "--bundle", bundle, "--out", out, "--device", "cpu"


def failures(out: Path) -> dict[str, tuple[str, str]]:
    """Return file name -> step and reason; each slide has one line."""
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["slide"] for row in rows}) == len(rows)
    return {row["slide"]: (row["step"], row["reason"]) for row in rows}


def made(out: Path) -> dict[str, int]:
    """Return slide -> when its result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/prediction.json")}


def test_ten_bad_slides_stop_nobody(slides: Path, bundle: Path, bad_slides: ModuleType, tmp_path: Path) -> None:
    """Two workers: every good slide has its result, every bad one its line; a second call computes nothing."""
    before = bad_slides.as_ordinary_user()
    folder, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(slides, folder)
    bad = bad_slides.make_bad_slides(folder / "first.tif", folder)
    if before is None:
        bad.pop("unreadable").unlink()  # root reads everything, and cannot be kept from it here
    call = [*(before or []), sys.executable, "-m", "napari_lrmil", "predict", folder, *words(bundle, out)]
    earlier: dict[str, int] = {}
    for engine in ("--workers", "2"), ():
        done = subprocess.run([*call, *engine], capture_output=True, text=True, timeout=240)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        found = failures(out)
        steps = {kind: found[path.name][0] for kind, path in bad.items()}
        assert steps == {kind: step for kind, step in bad_slides.STEPS.items() if kind in bad}
        assert len(found) == len(bad)
        assert all(reason and "\n" not in reason for _, reason in found.values())
        assert set(made(out)) == {"first", "Präparat 2 – été", "third"}
        earlier = earlier or made(out)
        told = json.loads((out / "cohort.json").read_text())
        assert (told["done"], told["already_there"]) == ((3, 0) if engine else (0, 3))
    assert made(out) == earlier
    assert "permission" in found[bad["unreadable"].name][1] or before is None
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == sorted(earlier)


def test_a_reader_that_there_is_not_is_a_wrong_call(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    code, _, err = call("predict", slides, *words(bundle, tmp_path), "--reader", "fast")
    assert code == 2 and "auto, openslide, tiles" in err and not made(tmp_path)


def test_a_runtime_that_there_is_not_is_a_wrong_call(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    code, _, err = call("predict", slides, *words(bundle, tmp_path), "--runtime", "fast")
    assert code == 2 and "auto, torch, openvino" in err and not made(tmp_path)


def test_only_what_was_asked_before_is_left_as_it_is(call: Call, slides: Path, tmp_path: Path) -> None:
    """The slide's fingerprint and resolution, the model, the scope and the teacher decide."""
    slide, out = tmp_path / "s.tif", tmp_path / "out"
    shutil.copyfile(slides / "first.tif", slide)
    bundle = untrained_bundle(tmp_path / "bundle").path
    when = [0]

    def again(*options: object) -> bool:
        """Return whether the slide was computed."""
        code, told, err = call("predict", slide, *words(bundle, out), *options)
        assert code == 0, err
        when.append(made(out)["s"])
        assert ("already there" in told) == (when[-1] == when[-2])
        return when[-1] != when[-2]

    assert again() and not again()
    assert again("--no-resume") and not again()
    assert again("--mpp", "0.4") and not again("--mpp", "0.4") and again()
    assert again("--report") and not again("--report")
    assert not again("--reader", "tiles")  # which is what auto did
    assert again("--reader", "openslide") and not again("--reader", "openslide") and not again()
    told = json.loads((out / "s" / "prediction.json").read_text(encoding="utf-8"))
    assert (told["reader"], told["reader_reason"]) == ("openslide", "asked for")
    assert not again("--runtime", "torch")  # which is what auto takes for a few patches
    assert again("--runtime", "torch", "--no-resume") and not again("--runtime", "torch") and not again()
    told = json.loads((out / "s" / "prediction.json").read_text(encoding="utf-8"))
    assert (told["runtime"], told["precision"], told["runtime_reason"]) == ("torch", "float32", "asked for")
    told |= {"runtime": "openvino", "precision": "bfloat16"}
    (out / "s" / "prediction.json").write_text(json.dumps(told), encoding="utf-8")
    when.append(made(out)["s"])
    assert not again() and again("--runtime", "torch")  # the reference answers for all, and no other for it
    assert again("--teacher", "top-3") and not again("--teacher", "top-3")
    assert again("--teacher", "all") and not again("--teacher", "all")
    assert not again()  # the teacher's result answers for the student alone, and took time
    assert again("--teacher", "top-2")
    shutil.copyfile(slides / "third.tif", slide)
    assert again() and not again()
    (out / "s" / "prediction.json").write_text("{broken")
    assert again()
    untrained_bundle(tmp_path / "bundle", temperature=2.0)
    assert again() and not again()
    regions = tmp_path / "r.geojson"
    square = [[0, 0], [1024, 0], [1024, 768], [0, 768], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [square]}
    regions.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    assert again("--roi", regions) and again("--roi", regions) and again()


def test_results_of_a_newer_version_fail_their_slide_and_stay(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    """Neither a second call nor `compare` computes over them, and a slide of another call is missed in the table."""
    said = "schema version 2, and napari-lrmil .* reads versions up to 1"
    assert call("predict", slides / "first.tif", *words(bundle, tmp_path))[0] == 0
    newer = tmp_path / "first" / "prediction.json"
    newer.write_text(json.dumps(json.loads(newer.read_text(encoding="utf-8")) | {"schema_version": 2}))
    before = newer.read_bytes()
    code, out, err = call("predict", slides, *words(bundle, tmp_path))
    assert (code, "2 of 3 slides done" in err, "already there" in out) == (3, True, False)
    assert list(failures(tmp_path)) == ["first.tif"]
    step, reason = failures(tmp_path)["first.tif"]
    assert step == "open" and str(newer) in reason and re.search(said, reason)
    assert CohortFile.read(tmp_path).retried == 0, "a second look would find the same"
    assert re.search(f"not in predictions.csv: .*{said}", err) and newer.read_bytes() == before
    code, _, err = call("compare", slides / "first.tif", *words(bundle, tmp_path))
    assert code == 1 and re.search(said, err) and newer.read_bytes() == before
    assert call("predict", slides / "first.tif", *words(bundle, tmp_path), "--no-resume")[0] == 0
    assert PredictionFile.read(tmp_path / "first").schema_version == 1
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_broken_results_of_another_slide_are_told_and_left_out_of_the_table(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "prediction.json").write_text("{broken")
    code, _, err = call("predict", slides / "first.tif", *words(bundle, tmp_path))
    assert code == 0 and re.search(r"not in predictions.csv: .*another.*cannot be read", err)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["first"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_keeps_what_is_done_and_lists_it(slides: Path, bundle: Path, tmp_path: Path) -> None:
    """Exit code 130, a table of what is done, nothing half-written, no line for what was not tried."""
    folder, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(slides, folder)
    big = write_slide(folder, PhantomSlide("second", LESION, 9, (3072, 2304)))
    (folder / "a.svs").write_text("no slide")
    command = tuple(map(str, ("predict", folder, *words(bundle, out))))
    work = start(run_command_up_to, command, big.stem, tmp_path / "reached", tmp_path / "said")
    while not (tmp_path / "reached").exists():
        work.join(0.01)
        assert work.exitcode is None, (tmp_path / "said").read_text()
    os.kill(work.pid or 0, signal.SIGINT)
    assert ended(work) == 130
    told = (tmp_path / "said").read_text()
    assert "cancelled" in told and "Traceback" not in told
    done = made(out)
    assert set(done) == {"first", "Präparat 2 – été"}
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert {row["slide"] for row in csv.DictReader(file)} == set(done)
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]
    assert not (out / "failures.csv").exists()  # its second try was to come


def test_what_a_killed_call_left_is_swept_away(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    from napari_lrmil.core.atomic_files import atomic_write_folder

    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with atomic_write_folder(tmp_path / "first", (), "x") as partial:
        whose = [str(os.getppid()), gone.stdout.strip()]
        names = [partial.name.replace(str(os.getpid()), number) for number in whose]
        names.append(names[1].replace(".first.", ".another."))
    for name in names:
        (tmp_path / name / "deep").mkdir(parents=True)
    assert call("predict", slides / "first.tif", *words(bundle, tmp_path))[0] == 0
    left = {path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")}
    assert left == {names[0], names[2]}  # of a process that lives, and of a slide that was not asked for


def test_a_table_needs_no_more_than_slides_and_a_missing_one_stops_nobody(
    call: Call, slides: Path, bundle: Path, tmp_path: Path
) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide\n{slides / 'first.tif'}\nabsent.svs\n{slides / 'third.tif'}\n")
    code, _, err = call("predict", table, *words(bundle, tmp_path / "out"))
    assert code == 3
    assert list(failures(tmp_path / "out")) == ["absent.svs"]
    assert set(made(tmp_path / "out")) == {"first", "third"}
    assert "2 of 3 slides done, 0 already there, 1 failed" in err


def test_features_of_a_folder_in_two_processes(call: Call, slides: Path, tmp_path: Path) -> None:
    """The same as one after the other; the broken one is listed with its step, and what is there stays."""
    from napari_lrmil.core.encoders import save_encoder
    from napari_lrmil.core.features.bag import read_bag

    folder = tmp_path / "slides"
    shutil.copytree(slides, folder)
    (folder / "text.svs").write_text("no slide")
    save_encoder(tmp_path / "e.safetensors", untrained_encoder())
    asked = ("features", folder, "--encoder", tmp_path / "e.safetensors", "--patch-px", 128, "--device", "cpu")
    for out, engine in (tmp_path / "two", ("--workers", 2)), (tmp_path / "one", ()):
        code, told, _ = call(*asked, "--out", out, *engine)
        assert (code, "3 of 4 slides" in told) == (3, True)
        assert failures(out)["text.svs"][0] == "open"
    one, two = (sorted((tmp_path / name).rglob("*.h5")) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 3
    for a, b in zip(map(read_bag, one), map(read_bag, two), strict=True):
        np.testing.assert_array_equal(a.coords, b.coords)
        np.testing.assert_allclose(a.features, b.features, atol=1e-5)
    before = [path.stat().st_mtime_ns for path in two]
    code, told, _ = call(*asked, "--out", tmp_path / "two")
    assert code == 3 and told.count("already there") == 3
    assert [path.stat().st_mtime_ns for path in two] == before


def test_predict_on_a_cluster_finds_slides_and_results_by_their_whole_paths(
    call: Call, slides: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(slides.parent)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", silence_logs=50
    ) as cluster:
        monkeypatch.setattr(SerialBackend, "run", None)  # nothing is done here
        code, _, err = call("predict", slides.name, *words(bundle, tmp_path), "--scheduler", cluster.scheduler_address)
    assert code == 0, err
    assert len(made(tmp_path)) == 3
    assert "dask cluster at" in json.loads((tmp_path / "cohort.json").read_text())["engine"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory", "much"), "such as 1500MB"),
        (("--scheduler", "tcp://127.0.0.1:9", "--workers", "2"), "where they are started"),
        (("--scheduler", "slurm:absent.yaml"), "expected YAML"),
    ],
)
def test_what_cannot_be_worked_with_is_a_wrong_call(
    call: Call, slides: Path, bundle: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    code, _, err = call("predict", slides, *words(bundle, tmp_path), *options)
    assert code == 2 and said in err and not made(tmp_path)


def test_the_time_left_is_told_where_there_is_no_terminal(
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
