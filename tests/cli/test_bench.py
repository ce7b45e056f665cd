"""Command ``bench``: its files, its output, a plot of AUROC against cost, and clear errors for wrong calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from napari_lrmil.core.benchmark import measure as measuring
from napari_lrmil.core.phantom import LESION, PhantomSlide, make_cohort, write_slide
from support.networks import untrained_bundle

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: that each setup has its own is tested elsewhere, and loading torch takes seconds."""
    monkeypatch.setattr(measuring, "_measure_in_child", measuring.measure)


@pytest.mark.slow
def test_bench_measures_and_draws(call: Call, tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("phantom", LESION, 5, (1536, 1024)))
    list(make_cohort(tmp_path / "cohort", 4, (768, 512), 1, split="test"))
    bundles = [untrained_bundle(tmp_path / name, name=name).path for name in ("one", "two")]
    named = [word for bundle in bundles for word in ("--bundle", bundle)]
    few = ("--repeats", 1, "--most-patches", 64, "--no-baseline", "--teacher")
    code, out, err = call("bench", slide, *named, *few, "--cohort", tmp_path / "cohort", "--out", tmp_path / "out")
    assert code == 2 and "Traceback" not in err and not (tmp_path / "out").exists()  # a folder is no table
    table = tmp_path / "cohort" / "cohort.csv"
    code, out, err = call("bench", slide, *named, *few, "--cohort", table, "--out", tmp_path / "out")
    assert code == 0, err
    assert "resolution: " in out and "predict as a whole" in out and "HR, the bundle's teacher" in out
    stored = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [entry["model"] for entry in stored["measured"]] == ["one", "two"]
    names = [entry["setup"]["name"] for entry in stored["measured"][0]["setups"]]
    assert "baseline pipeline" not in names and "LR, predict defaults" in names
    pareto = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert {p["name"] for p in pareto["points"]} == {
        f"{n}, {w}" for n in ("one", "two") for w in ("student", "teacher")
    }
    assert (tmp_path / "out" / "pareto.png").exists() and "## phantom.tif, one" in (
        tmp_path / "out" / "bench.md"
    ).read_text()


def test_a_slide_that_is_none_is_one_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    code, _, err = call("bench", tmp_path / "text.svs", "--out", tmp_path / "out")
    assert code == 1 and "Traceback" not in err and "text.svs" in err
