"""A short finished training run that many tests read."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrmil_training.config import TrainConfig, build_config
from lrmil_training.train import train
from napari_lrmil.core.encoders import save_encoder
from napari_lrmil.core.events import Event
from support.networks import untrained_encoder

TINY: dict[str, Any] = {"hr_patch_px": 64, "lr_patch_px": 64, "bootstrap": 100}
SHORT: dict[str, Any] = {
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 1},
    "stage2": {"epochs": 2, "min_epochs": 1},
    "stage3": {"epochs": 0},
}
ENCODER, RUN, EVENTS = "untrained.safetensors", "run", "events.pickle"


@dataclass(frozen=True)
class Trained:
    """A run of every stage but the third, on the phantom slides, with an encoder that was never trained.

    Attributes
    ----------
    cohort
        The table of its slides.
    config
        Its configuration.
    run
        Its folder.
    events
        What it yielded.
    """

    cohort: Path
    config: TrainConfig
    run: Path
    events: list[Event]

    @staticmethod
    def fill(folder: Path, cohort: Path) -> None:
        """Train in a folder."""
        save_encoder(folder / ENCODER, untrained_encoder())
        events = list(train(cohort, folder / RUN, _config(folder), torch.device("cpu")))
        (folder / EVENTS).write_bytes(pickle.dumps(events))

    @classmethod
    def in_folder(cls, folder: Path, cohort: Path) -> Trained:
        """Return the run that was trained in a folder."""
        return cls(cohort, _config(folder), folder / RUN, pickle.loads((folder / EVENTS).read_bytes()))

    @property
    def encoder(self) -> str:
        """The file of its encoder."""
        return self.config.encoder.teacher

    def copy_run(self, to: Path) -> Path:
        """Copy the whole run to a folder that is not there yet; return that."""
        return Path(shutil.copytree(self.run, to))

    def copy_features(self, to: Path) -> Path:
        """Copy the features of its frozen HR encoder to a folder that is not there yet; return that."""
        (high,) = (self.run / "features").glob("20x_*")
        shutil.copytree(high, to / high.name)
        return to


def _config(folder: Path) -> TrainConfig:
    return build_config(TINY | SHORT | {"encoder": {"teacher": str(folder / ENCODER)}})
