"""Where the figures of every epoch also go: a table, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from napari_lrmil.core.errors import ConfigError

PROJECT = "napari-lrmil"
TABLE = "metrics.csv"


class TableLogger(Logger):
    """Append figures to a table with the columns stage, epoch, name and value.

    Lightning's own begins anew at every start, so that a continued run would lose its first epochs.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        super().__init__()
        self.path, self.stage = folder / TABLE, stage

    @property
    def name(self) -> str:
        """Return the stage."""
        return self.stage

    @property
    def version(self) -> int:
        """Return 0: there is one table, to which every start appends."""
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: settings lie in ``config.yaml`` beside the table."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line per figure."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if not begun:
                rows.writerow(["stage", "epoch", "name", "value"])
            rows.writerows([self.stage, step, name, value] for name, value in metrics.items())


def make_loggers(names: Sequence[str], folder: Path, stage: str, run_name: str) -> tuple[Logger, ...]:
    """Return the loggers that are asked for by name: ``csv``, ``tensorboard``, ``wandb``, ``mlflow``.

    They write below ``folder`` and send nothing. Weights & Biases follows ``WANDB_MODE`` where that is set, MLflow
    ``MLFLOW_TRACKING_URI``; both take their credentials from their own settings, never from ours.

    Parameters
    ----------
    names
        Which.
    folder
        Of logs.
    stage
        Goes into the names of curves and runs.
    run_name
        Under which the stages of a run are grouped.

    Raises
    ------
    ConfigError
        Where a name is unknown or its package is not installed.
    """
    makers = {"csv": _table, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    for name in names:
        if name not in makers:
            raise ConfigError(f"loggers: '{name}' is unknown; there are: {', '.join(makers)}")
    return tuple(makers[name](folder, stage, run_name) for name in names)


def _require(name: str, packages: Mapping[str, str]) -> None:
    """Raise where none of the modules is there; `packages` maps modules to what is to be installed for them."""
    if not any(find_spec(module) for module in packages):
        install = " or ".join(f"pip install {package}" for package in packages.values())
        raise ConfigError(f"loggers: '{name}' needs a package that is not installed; {install}, or leave it out")


def _table(folder: Path, stage: str, run_name: str) -> Logger:
    return TableLogger(folder, stage)


def _tensorboard(folder: Path, stage: str, run_name: str) -> Logger:
    _require("tensorboard", {"tensorboard": "tensorboard", "tensorboardX": "tensorboardX"})
    return TensorBoardLogger(folder, name="tensorboard", version=stage, default_hp_metric=False)


def _wandb(folder: Path, stage: str, run_name: str) -> Logger:
    _require("wandb", {"wandb": "wandb"})
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=f"{run_name} {stage}",
        save_dir=folder,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=re.sub(r"\W+", "-", f"{run_name}-{stage}"),  # a continued stage goes on in the same curve
        group=run_name,
        resume="allow",
        mode=mode,
    )


def _mlflow(folder: Path, stage: str, run_name: str) -> Logger:
    _require("mlflow", {"mlflow": "mlflow-skinny"})
    local = (folder / "mlruns").absolute().as_uri()
    return MLFlowLogger(
        experiment_name=PROJECT,
        run_name=f"{run_name} {stage}",
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local),
        tags={"run": run_name, "stage": stage},
    )
