"""Loggers for the metrics of every epoch: CSV table, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import csv
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import ConfigError

PROJECT = "napari-lrmil"
METRICS_TABLE, RUN_ID = "metrics.csv", "id.txt"
COLUMNS = ("stage", "fit", "epoch", "name", "value")
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
LOGGER_PACKAGES = {  # logger -> module that it needs, and the package to install for it
    "csv": ("csv", ""),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}


@dataclass(frozen=True)
class FitName:
    """Name of a fit. Methods, learning rates, seeds and folds fit a stage of the same name several times.

    Attributes
    ----------
    folder
        Log folder in the folder of one run, that is of one seed on one fold.
    run
        Name of the run; it need not be unique.
    stage
        Name of the stage.
    fit
        Hash of everything that the result depends on; empty for an only fit.
    """

    folder: Path
    run: str
    stage: str
    fit: str = ""

    @property
    def short(self) -> str:
        """Stage and hash, unique within a run."""
        return f"{self.stage}-{self.fit}" if self.fit else self.stage

    @property
    def title(self) -> str:
        """Title for people: run, folder (seed and fold for a part of a series) and fit."""
        return f"{self.run} {self.folder.absolute().parent.name} {self.short}"

    @property
    def run_id(self) -> str:
        """Random id, stored in the log folder. Two runs can share a name, and even a path, one after another."""
        file = self.folder / RUN_ID
        if not file.exists():  # drawn once: a resumed run must keep its id
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, secrets.token_hex(4))
        return file.read_text(encoding="utf-8").strip()


class TableLogger(Logger):
    """Append metrics to a CSV table with the columns stage, fit, epoch, name and value.

    Lightning's ``CSVLogger`` overwrites its file at every start, so a resumed run would lose its first epochs.
    """

    def __init__(self, fit: FitName) -> None:
        super().__init__()
        self.path, self.fit = fit.folder / METRICS_TABLE, fit

    @property
    def name(self) -> str:
        """Return the short name of the fit."""
        return self.fit.short

    @property
    def version(self) -> int:
        """Return 0: every start appends to the same table."""
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in ``config.yaml`` of the run folder."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line per metric."""
        # Opened for every epoch, so that a killed run has all its lines.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        has_header = self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if not has_header:
                rows.writerow(COLUMNS)
            rows.writerows([self.fit.stage, self.fit.fit, step, name, value] for name, value in metrics.items())


def make_loggers(names: Sequence[str], fit: FitName) -> tuple[Logger, ...]:
    """Return loggers by name: ``csv``, ``tensorboard``, ``wandb``, ``mlflow``.

    They write to the log folder and send nothing over the network, unless ``WANDB_MODE`` or ``MLFLOW_TRACKING_URI`` is
    set. Credentials come from the services' own settings, never from ours. A resumed stage continues the same table and
    curve; in MLflow it is another run of the same name.

    Parameters
    ----------
    names
        Names of the loggers.
    fit
        Name of the fit, for curves and runs.

    Raises
    ------
    ConfigError
        If a name is unknown or its package is not installed.
    """
    require_loggers(names)
    makers = {"csv": _table, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    return tuple(makers[name](fit) for name in names)


def require_loggers(names: Sequence[str]) -> None:
    """Raise `ConfigError` if a name is unknown or its package is not installed."""
    for name in names:  # without importing the packages, which takes seconds
        if name not in LOGGER_PACKAGES:
            raise ConfigError(f"loggers: '{name}' is unknown; available: {', '.join(LOGGER_PACKAGES)}")
        module, package = LOGGER_PACKAGES[name]
        if find_spec(module) is None:
            raise ConfigError(
                f"loggers: '{name}' needs a package that is not installed; pip install {package}, or leave it out"
            )
    if "mlflow" in names and MLFLOW_VARIABLE not in os.environ and find_spec("sqlalchemy") is None:
        raise ConfigError(f"loggers: 'mlflow' needs {MLFLOW_VARIABLE}, or a database of its own; pip install mlflow")


def _table(fit: FitName) -> Logger:
    return TableLogger(fit)


def _tensorboard(fit: FitName) -> Logger:
    return TensorBoardLogger(fit.folder, name="tensorboard", version=fit.short, default_hp_metric=False)


def _wandb(fit: FitName) -> Logger:
    # Offline by default: nothing leaves the machine unless the user asks for it.
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    fit.folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=fit.title,
        save_dir=fit.folder,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=re.sub(r"\W+", "-", f"{fit.run_id}-{fit.short}"),  # a resumed stage continues the same curve
        group=fit.run,
        resume="allow",
        mode=mode,
    )


def _mlflow(fit: FitName) -> Logger:
    uri, artifacts = os.environ.get(MLFLOW_VARIABLE), None
    if uri is None:  # a database, as MLflow no longer supports plain files; absolute, to work from any folder
        fit.folder.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{(fit.folder / 'mlflow.db').absolute().as_posix()}"
        artifacts = (fit.folder / "mlruns").absolute().as_uri()
    tags = {"run": fit.run, "run_id": fit.run_id, "stage": fit.stage, "fit": fit.fit}
    return MLFlowLogger(
        experiment_name=PROJECT, run_name=fit.title, tags=tags, tracking_uri=uri, artifact_location=artifacts
    )
