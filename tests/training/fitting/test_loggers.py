"""Loggers of the metrics of every epoch; two of them need optional packages."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lrmil_training.fitting import loggers
from lrmil_training.fitting.fit import fit
from lrmil_training.fitting.loggers import FitName, make_loggers
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Progress
from support.fits import drained, figures, maker, plan


def _rows(folder: Path) -> dict[tuple[str, int], float]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = {(row["name"], int(row["epoch"])): float(row["value"]) for row in rows}
    assert len(values) == len(rows)
    assert {row["stage"] for row in rows} == {"toy"}
    return values


def test_table_holds_every_figure_once_though_the_run_was_broken_off(tmp_path: Path) -> None:
    """The first epochs are not lost, nor written twice."""
    logged = plan(tmp_path, loggers=make_loggers(["csv"], FitName(tmp_path / "logs", "run", "toy")))
    stream = fit(maker(5), logged)
    next(e for e in stream if isinstance(e, Progress) and e.done == 2)
    stream.close()
    drained(fit(maker(5), logged))
    events, _ = drained(fit(maker(5), plan(tmp_path / "whole")))
    assert _rows(tmp_path / "logs") == pytest.approx(figures(events), abs=1e-6)


def test_unknown_and_missing_ones_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sentence names the package to install."""
    with pytest.raises(ConfigError, match="'excel' is unknown; available: csv, tensorboard, wandb, mlflow"):
        make_loggers(["excel"], FitName(tmp_path, "run", "toy"))
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    for name, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        with pytest.raises(ConfigError, match=f"'{name}' needs a package .* pip install {package}"):
            make_loggers([name], FitName(tmp_path, "run", "toy"))
    assert not list(tmp_path.iterdir())


def test_nothing_is_sent_unless_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights & Biases is offline without ``WANDB_MODE``, MLflow writes to a folder without its own variable."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(loggers, "find_spec", lambda module: SimpleNamespace())
    monkeypatch.setattr(loggers, "WandbLogger", lambda **settings: calls.append(settings))
    monkeypatch.setattr(loggers, "MLFlowLogger", lambda **settings: calls.append(settings))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_loggers(["wandb", "mlflow"], FitName(tmp_path, "my run", "toy"))
    monkeypatch.setenv("WANDB_MODE", "online")
    make_loggers(["wandb"], FitName(tmp_path, "my run", "toy"))
    assert [call.get("mode") for call in calls] == ["offline", None, "online"]
    assert calls[0]["id"] == calls[2]["id"] != ""
    assert calls[1]["tracking_uri"] == f"sqlite:///{tmp_path.as_posix()}/mlflow.db"
    assert not any("key" in name or "token" in name for call in calls for name in call)


def test_fits_of_one_stage_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Student and ablation, two learning rates, two seeds, two runs of one name: a curve and an id each."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(loggers, "find_spec", lambda module: SimpleNamespace())
    monkeypatch.setattr(loggers, "WandbLogger", lambda **settings: calls.append(settings))
    monkeypatch.setattr(loggers, "MLFlowLogger", lambda **settings: calls.append(settings))
    monkeypatch.setattr(
        loggers, "TensorBoardLogger", lambda folder, **s: calls.append({"id": f"{folder}/{s['version']}"})
    )
    parts = [tmp_path / run / "runs" / seed / "logs" for run in ("a", "b") for seed in ("seed0", "seed1")]
    fits = [FitName(part, "lrmil", "stage3", key) for part in parts for key in ("1a2b", "3c4d")]
    for name, ids in (("wandb", "id"), ("tensorboard", "id"), ("mlflow", "run_name")):
        calls.clear()
        for fit_name in fits:
            make_loggers([name], fit_name)
        seen = {(call[ids], *sorted(call.get("tags", {}).items())) for call in calls}
        assert len(seen) == len(fits), name
        again = [dict(call) for call in calls]
        calls.clear()
        for fit_name in fits:
            make_loggers([name], fit_name)
        assert calls == again, "a fit that is continued goes on under its name"
    assert calls[0]["run_name"] == "lrmil seed0 stage3-1a2b"


def test_the_table_says_which_fit_a_figure_is_of(tmp_path: Path) -> None:
    for key, value in (("1a2b", 0.5), ("3c4d", 0.7)):
        make_loggers(["csv"], FitName(tmp_path, "lrmil", "stage3", key))[0].log_metrics({"val/auroc": value}, 4)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [("stage3", "1a2b", "4", "val/auroc", "0.5"), ("stage3", "3c4d", "4", "val/auroc", "0.7")]


def test_tensorboard_writes_curves(tmp_path: Path) -> None:
    """One folder of curves a stage, with every figure at its epoch."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged = plan(
        tmp_path, epochs=2, loggers=make_loggers(["tensorboard"], FitName(tmp_path / "logs", "run", "toy", "1a2b"))
    )
    events, _ = drained(fit(maker(5), logged))
    curves = accumulator.EventAccumulator(str(tmp_path / "logs" / "tensorboard" / "toy-1a2b")).Reload()
    points = {(tag, scalar.step): scalar.value for tag in curves.Tags()["scalars"] for scalar in curves.Scalars(tag)}
    named = {key: value for key, value in points.items() if key[0] != "epoch"}
    expected = figures(events)
    assert {epoch for _, epoch in expected} == {0, 1} and len(expected) >= 8
    assert named == pytest.approx(expected, rel=1e-6)
