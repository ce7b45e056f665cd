"""Run context: the configuration, cohort, folder, device and HR encoder that all stages of one run share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrmil_training.config import Stage1Config, Stage2Config, Stage3Config, TeacherConfig, TrainConfig
from lrmil_training.config_hash import hashed_values, later_run_values
from lrmil_training.data.bags import class_weights
from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.features import FeatureRequest
from lrmil_training.data.lesion_targets import LesionTargets
from lrmil_training.data.mil_head import MilHead
from lrmil_training.data.patient_bags import group_by_bag
from lrmil_training.data.patient_groups import expected_draws, samples_by_patient
from lrmil_training.fitting.fit import FitPlan
from lrmil_training.fitting.loggers import FitName, make_loggers
from lrmil_training.runs.event_log import CHECKPOINTS, FEATURES, LOGS, WITHOUT_ARTEFACTS
from lrmil_training.runs.lock import STOP_FILE
from napari_lrmil.core.encoders import AlignedEncoder, LoadedEncoder, module_sha256
from napari_lrmil.core.patching.stain import StainTarget

StageSettings = TeacherConfig | Stage1Config | Stage2Config | Stage3Config


@dataclass(frozen=True)
class RunContext:
    """One run: a seed on one split of a cohort.

    Attributes
    ----------
    config
        Configuration of the run.
    cohort
        Slides, classes and splits.
    folder
        The run folder.
    device
        Device of all fits and of feature extraction.
    encoder
        The teacher's frozen HR encoder; in a run without a teacher the network that the student starts from.
    stop
        A file that ends the run as soon as it exists. None: ``stop`` in the run folder. The runs of a series share the
        file of the series.
    full_paths
        Whether event log and report have absolute paths.
    allow_missing
        Whether slides are used of which more than a third of the tissue is missing.
    stain
        Colour to which slides are brought; None leaves them as they are.
    teacher_epochs
        Epochs of the teacher, chosen by the inner cross-validation; None: validation chooses.
    hr_source
        Hash of the content of HR features of another program; empty if HR patches are encoded.
    head
        The teacher's MIL of another program, its classes in the order of the cohort's; None: the teacher is fitted.
    """

    config: TrainConfig
    cohort: Cohort
    folder: Path
    device: torch.device
    encoder: LoadedEncoder
    stop: Path | None = None
    full_paths: bool = False
    allow_missing: bool = False
    stain: StainTarget | None = None
    teacher_epochs: int | None = None
    hr_source: str = ""
    head: MilHead | None = None

    @property
    def hidden_folders(self) -> set[Path] | None:
        """Folders that the event log leaves out of messages; None if it has absolute paths."""
        if self.full_paths:
            return None
        folders = {self.folder, self.cohort.path.parent, *(s.path.parent for s in self.cohort.slides)}
        # A dot is the folder of a relative path; it stands in front of nothing.
        return {place for folder in folders for place in (folder, folder.resolve()) if place.is_absolute()}

    @property
    def features_folder(self) -> Path:
        """Folder of HR features. Several runs can share it, because file paths name encoder and resolution.

        Features of a mask without artefacts are of other patches, and have a folder of their own in it.
        """
        folder = self.config.features or self.folder / FEATURES
        return folder / WITHOUT_ARTEFACTS if self.config.exclude_artefacts else folder

    @cached_property
    def class_weights(self) -> list[float]:
        """Weight of each class in the label terms, from the training slides; 1 without labels."""
        if not self.cohort.is_labelled:
            return [1.0] * len(self.cohort.classes)
        # Training slides alone: validation slides must not influence the fit.
        targets = [self.cohort.target(slides[0]) for slides in self.bags("train")]
        draws = expected_draws(self.patient_samples, len(targets)) if self.patient_samples else None
        return class_weights(targets, len(self.cohort.classes), self.config.class_weights, draws)

    @cached_property
    def patient_samples(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the training samples of each patient; empty unless `TrainConfig.sampling` is ``patient``."""
        if self.config.sampling == "slide":
            return ()
        return samples_by_patient([slides[0].patient for slides in self.bags("train")])

    def bags(self, side: str) -> list[tuple[CohortSlide, ...]]:
        """Return the slides of each sample of a split, see `TrainConfig.bag`."""
        return group_by_bag(self.cohort.of(side), self.config.bag)

    @cached_property
    def lesions(self) -> LesionTargets:
        """Patch targets from the outlines beside the slides, for `TrainConfig.lambda_patch`."""
        return LesionTargets(self.cohort)

    def fit_plan(self, stage: str, settings: StageSettings, depends: Sequence[Any] = ()) -> FitPlan:
        """Return the plan of a fit, with its checkpoint folder and key.

        Parameters
        ----------
        stage
            Name in events and file names.
        settings
            Settings of the stage.
        depends
            Values, ready for JSON, that the result depends on in addition to `settings` and the run's own settings.
        """
        # The first digits of the key in the folder name let methods with different settings keep a fit each.
        key = self._key([stage, hashed_values(settings), list(depends)])
        return FitPlan(
            stage=stage,
            epochs=settings.epochs,
            patience=getattr(settings, "patience", settings.epochs),  # stage 1 has no early stopping
            seed=stage_seed(self.config.seed, stage),
            folder=self.folder / CHECKPOINTS / f"{stage}-{key[:8]}",
            device=self.device,
            ema=getattr(settings, "ema", 0.0),
            key=key,
            devices=self.config.devices,
            precision=self.config.precision,
            stop=self.stop or self.folder / STOP_FILE,
            patients=self.patient_samples,
            loggers=make_loggers(self.config.loggers, FitName(self.folder / LOGS, self.config.name, stage, key[:8])),
        )

    def _key(self, stage: list[Any]) -> str:
        """Return a hash of what a stage depends on: seed, grids, encoder, teacher, training and validation slides.

        Its JSON is part of the format of a run folder; see `config_hash` before changing it.
        """
        c = self.config
        # Test slides are left out, because a fit does not depend on them.
        slides = [(s.name, s.patient, s.label, s.split) for side in ("train", "val") for s in self.cohort.of(side)]
        shared = [c.seed, c.hr_mpp, c.hr_patch_px, c.plan.n, c.class_weights, hashed_values(c.teacher)]
        # Outlines are data of the fit; without the patch term nothing depends on them.
        outlines = [self.lesions.fingerprint] if c.lambda_patch else []
        # Students depend on the teacher's chosen epochs too.
        epochs = [] if self.teacher_epochs is None else [{"teacher_epochs": self.teacher_epochs}]
        source = [{"hr_source": self.hr_source}] if self.hr_source else []
        # The content of a given head, because the file may be changed or moved.
        head = [] if self.head is None else [{"teacher_mil": self.head.fingerprint}]
        given = [*outlines, *epochs, *source, *head]
        parts: list[Any] = [stage, shared, self.encoder.sha256, slides, *later_run_values(c), *given]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def pca_file(self) -> Path:
        """File of the fitted reduction of the teacher's embedding; its name has a hash of all that it depends on."""
        return self.folder / CHECKPOINTS / f"pca-{self._key(['pca'])[:16]}.safetensors"

    @property
    def _stain_suffix(self) -> str:
        """Part of the feature files' names: features of another target are other features."""
        return f"-{self.stain.method}-{self.stain.fingerprint[:8]}" if self.stain else ""

    def hr_request(self) -> FeatureRequest:
        """Return the request for the teacher's features."""
        return FeatureRequest(
            encoder=self.encoder.encoder,
            encoder_name=self.encoder.spec.full_name + self._stain_suffix,
            encoder_sha256=self.encoder.sha256,
            plan=self.config.plan,
            high=True,
            folder=self.features_folder,
            layers=self.config.compared_layers,
            allow_missing=self.allow_missing,
            tissue=self.config.tissue,
        )

    def lr_request(self, encoder: AlignedEncoder) -> FeatureRequest:
        """Return the request for LR features by a frozen encoder. The hash of its weights is part of their path."""
        sha256 = module_sha256(encoder)
        return FeatureRequest(
            encoder=encoder,
            encoder_name=f"student-{sha256[:8]}{self._stain_suffix}",
            encoder_sha256=sha256,
            plan=self.config.plan,
            high=False,
            folder=self.folder / FEATURES,  # never shared: the encoder is of this run alone
            input_px=self.config.student_input_px,
            allow_missing=self.allow_missing,
            tissue=self.config.tissue,
        )


def stage_seed(seed: int, stage: str) -> int:
    """Return a seed that depends only on the run's seed and the stage's name."""
    return int(np.random.default_rng([seed, *stage.encode()]).integers(2**31))
