"""What the stages of one run share: configuration, cohort, folder, device, encoder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lrmil_training.config import TrainConfig
from lrmil_training.config_hash import hashed_values, later_run_values
from lrmil_training.data.bags import class_weights
from lrmil_training.data.cohort import Cohort
from lrmil_training.data.features import FeatureRequest, find_encoder
from lrmil_training.data.teacher_targets import FeatureStatistics
from lrmil_training.fitting.fit import FitPlan
from lrmil_training.fitting.loggers import FitName, make_loggers
from lrmil_training.runs.event_log import CHECKPOINTS, FEATURES, LOGS
from lrmil_training.runs.lock import STOP
from lrmil_training.stages.bag_fitting import stage_seed
from lrmil_training.stages.patch_distillation import teacher_layers
from napari_lrmil.core.encoders import AlignedEncoder, LoadedEncoder, build_encoder, module_sha256


@dataclass
class RunContext:
    """One run: a seed on one split of a cohort.

    Attributes
    ----------
    config, cohort, folder, device, encoder
        What it is told.
    standard
        The teacher's training statistics, once they are known.
    stop
        The file that ends it; in its own folder unless it is part of a series.
    failures
        Slide name -> reason, of slides that gave no features.
    """

    config: TrainConfig
    cohort: Cohort
    folder: Path
    device: torch.device
    encoder: LoadedEncoder
    standard: FeatureStatistics | None = None
    stop: Path | None = None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def features(self) -> Path:
        """Where patch features lie; several runs may share a folder, files are told apart by their encoder."""
        return self.config.features or self.folder / FEATURES

    @cached_property
    def weights(self) -> list[float]:
        """Weight of each class in the label terms, from the training slides."""
        targets = [self.cohort.target(s) for s in self.cohort.of("train")]
        return class_weights(targets, len(self.cohort.classes), self.config.class_weights)

    def plan(self, stage: str, settings: Any, depends: list[Any]) -> FitPlan:
        """Return how to fit a stage; `depends` is what its result depends on beyond the run's own settings."""
        seed = stage_seed(self.config.seed, stage)
        key = self._key([stage, hashed_values(settings), depends])
        patience, ema = getattr(settings, "patience", settings.epochs), getattr(settings, "ema", 0.0)
        folder = self.folder / CHECKPOINTS / f"{stage}-{key[:8]}"
        return FitPlan(
            stage=stage,
            epochs=settings.epochs,
            patience=patience,
            seed=seed,
            folder=folder,
            device=self.device,
            ema=ema,
            key=key,
            devices=self.config.devices,
            precision=self.config.precision,
            stop=self.stop or self.folder / STOP,
            loggers=make_loggers(self.config.loggers, FitName(self.folder / LOGS, self.config.name, stage, key[:8])),
        )

    def _key(self, told: list[Any]) -> str:
        """Return a hash of what a stage depends on: seed, grids, encoder, teacher, the slides that are learned from.

        Its JSON is part of the format of a run folder; see `config_hash` before changing it.
        """
        c = self.config
        learned = [(s.name, s.patient, s.label, s.split) for side in ("train", "val") for s in self.cohort.of(side)]
        shared = [c.seed, c.hr_mpp, c.hr_patch_px, c.plan.n, c.class_weights, hashed_values(c.teacher)]
        parts = [told, shared, self.encoder.sha256, learned, *later_run_values(c)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def hr_request(self) -> FeatureRequest:
        """Return the request for the teacher's features."""
        return FeatureRequest(
            encoder=self.encoder.encoder,
            encoder_name=self.encoder.spec.name,
            encoder_sha256=self.encoder.sha256,
            plan=self.config.plan,
            high=True,
            folder=self.features,
            layers=teacher_layers(self.config),
        )

    def lr_request(self, encoder: AlignedEncoder) -> FeatureRequest:
        """Return the request for LR features by a frozen encoder; its weights' hash is part of their folder's name."""
        sha256 = module_sha256(encoder)
        return FeatureRequest(
            encoder=encoder,
            encoder_name=f"student-{sha256[:8]}",
            encoder_sha256=sha256,
            plan=self.config.plan,
            high=False,
            folder=self.folder / FEATURES,
            input_px=self.config.student_input_px,
        )

    def fresh_student(self, *, aligned: bool = True) -> AlignedEncoder:
        """Return the student before distillation: a copy of the teacher's encoder, or another network.

        Parameters
        ----------
        aligned
            Whether it lives in the teacher's standardised space, or is going to. Otherwise its embeddings are its own:
            of its own width, with no projection that nobody trained, and not in another network's units.
        """
        name = self.config.encoder.student
        source = self.encoder if name == "teacher" else find_encoder(name)
        copy = build_encoder(source.spec)
        copy.load_state_dict(source.encoder.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_seed(self.config.seed, "student"))
            student = AlignedEncoder(copy, self.encoder.encoder.dim if aligned else copy.dim)
        if aligned and self.standard is not None:
            student.set_standard(self.standard.mean, self.standard.deviation)
        return student.eval()
