"""Where the figures of every epoch also go: a table, TensorBoard, Weights & Biases, MLflow."""

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
LOGGER_PACKAGES = {  # logger -> module that it needs, and what to install for it
    "csv": ("csv", ""),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}


@dataclass(frozen=True)
class FitName:
    """Which fit figures are of: methods, learning rates, seeds and folds fit a stage of one name several times.

    Attributes
    ----------
    folder
        Of logs, in the folder of one run: of one seed on one fold.
    run
        The run's name, which others may bear too.
    stage
        That is fitted.
    fit
        Hash of what its result depends on; empty where there is only one.
    """

    folder: Path
    run: str
    stage: str
    fit: str = ""

    @property
    def short(self) -> str:
        """Stage and hash; tells the fits of one run apart."""
        return f"{self.stage}-{self.fit}" if self.fit else self.stage

    @property
    def title(self) -> str:
        """For people: the run, its folder, which for a part of a series is seed and fold, and the fit."""
        return f"{self.run} {self.folder.absolute().parent.name} {self.short}"

    @property
    def run_id(self) -> str:
        """Drawn once and kept in the folder: runs of one name, even of one path at other times, are others."""
        file = self.folder / RUN_ID
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, secrets.token_hex(4))
        return file.read_text(encoding="utf-8").strip()


class TableLogger(Logger):
    """Append figures to a table with the columns stage, fit, epoch, name and value.

    Lightning's own begins anew at every start, so that a continued run would lose its first epochs.
    """

    def __init__(self, fit: FitName) -> None:
        super().__init__()
        self.path, self.fit = fit.folder / METRICS_TABLE, fit

    @property
    def name(self) -> str:
        """Return the fit."""
        return self.fit.short

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
                rows.writerow(COLUMNS)
            rows.writerows([self.fit.stage, self.fit.fit, step, name, value] for name, value in metrics.items())


def make_loggers(names: Sequence[str], fit: FitName) -> tuple[Logger, ...]:
    """Return the loggers that are asked for by name: ``csv``, ``tensorboard``, ``wandb``, ``mlflow``.

    They write below the fit's folder and send nothing. Weights & Biases follows ``WANDB_MODE`` where that is set,
    MLflow ``MLFLOW_TRACKING_URI``; both take their credentials from their own settings, never from ours. A stage that
    is continued goes on in the same table and curve, in MLflow as another run of the same name.

    Parameters
    ----------
    names
        Which.
    fit
        What the figures are of: names curves and runs.

    Raises
    ------
    ConfigError
        Where a name is unknown or its package is not installed.
    """
    require_loggers(names)
    makers = {"csv": _table, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    return tuple(makers[name](fit) for name in names)


def require_loggers(names: Sequence[str]) -> None:
    """Raise `ConfigError` where a name is unknown or its package is not installed; nothing is made."""
    for name in names:
        if name not in LOGGER_PACKAGES:
            raise ConfigError(f"loggers: '{name}' is unknown; there are: {', '.join(LOGGER_PACKAGES)}")
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
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    fit.folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=fit.title,
        save_dir=fit.folder,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=re.sub(r"\W+", "-", f"{fit.run_id}-{fit.short}"),  # a continued stage goes on in the same curve
        group=fit.run,
        resume="allow",
        mode=mode,
    )


def _mlflow(fit: FitName) -> Logger:
    where: dict[str, Any] = {"tracking_uri": os.environ.get(MLFLOW_VARIABLE)}
    if MLFLOW_VARIABLE not in os.environ:  # the database serves from any working folder; MLflow gave up plain files
        fit.folder.mkdir(parents=True, exist_ok=True)
        where["tracking_uri"] = f"sqlite:///{(fit.folder / 'mlflow.db').absolute().as_posix()}"
        where["artifact_location"] = (fit.folder / "mlruns").absolute().as_uri()
    told = {"run": fit.run, "run_id": fit.run_id, "stage": fit.stage, "fit": fit.fit}
    return MLFlowLogger(experiment_name=PROJECT, run_name=fit.title, tags=told, **where)
