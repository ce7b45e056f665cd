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
TRACKING = "MLFLOW_TRACKING_URI"
PACKAGES = {  # logger -> module that it needs, and what to install for it
    "csv": ("csv", ""),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}


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
    ``MLFLOW_TRACKING_URI``; both take their credentials from their own settings, never from ours. A stage that is
    continued goes on in the same table and curve, in MLflow as another run of the same name.

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
    require_loggers(names)
    makers = {"csv": _table, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    return tuple(makers[name](folder, stage, run_name) for name in names)


def require_loggers(names: Sequence[str]) -> None:
    """Raise `ConfigError` where a name is unknown or its package is not installed; nothing is made."""
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"loggers: '{name}' is unknown; there are: {', '.join(PACKAGES)}")
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            raise ConfigError(
                f"loggers: '{name}' needs a package that is not installed; pip install {package}, or leave it out"
            )
    if "mlflow" in names and TRACKING not in os.environ and find_spec("sqlalchemy") is None:
        raise ConfigError(f"loggers: 'mlflow' needs {TRACKING}, or a database of its own; pip install mlflow")


def _table(folder: Path, stage: str, run_name: str) -> Logger:
    return TableLogger(folder, stage)


def _tensorboard(folder: Path, stage: str, run_name: str) -> Logger:
    return TensorBoardLogger(folder, name="tensorboard", version=stage, default_hp_metric=False)


def _wandb(folder: Path, stage: str, run_name: str) -> Logger:
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
    where: dict[str, Any] = {"tracking_uri": os.environ.get(TRACKING)}
    if TRACKING not in os.environ:  # the database serves from any working folder; MLflow gave up plain files
        folder.mkdir(parents=True, exist_ok=True)
        where["tracking_uri"] = f"sqlite:///{(folder / 'mlflow.db').absolute().as_posix()}"
        where["artifact_location"] = (folder / "mlruns").absolute().as_uri()
    told = {"run": run_name, "stage": stage}
    return MLFlowLogger(experiment_name=PROJECT, run_name=f"{run_name} {stage}", tags=told, **where)
