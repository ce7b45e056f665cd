"""Stage 2: the student's MIL learns from labels and from the teacher's outputs, on a frozen encoder.

The labels-only baseline fits the same MIL to the same bags without the teacher. Formulas: Method 2.5.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from lrmil_training.config import Stage2Config, TeacherConfig
from lrmil_training.stages.bag_fitting import distillation_loss, fit_mil, label_loss, stored_bags
from lrmil_training.stages.end_to_end import fit_end_to_end, pixel_bags
from lrmil_training.stages.outputs import Student, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import round_to_half
from napari_lrmil.core.events import Event
from napari_lrmil.core.models.mil import MIL


@dataclass(frozen=True)
class SlideDistillation:
    """Specification of stage 2.

    Attributes
    ----------
    settings
        Loss weights, optimisation, and whether features are stored or computed in every epoch.
    depends
        Values that the result depends on in addition; part of the checkpoint key.
    name
        Name of the fit in events and file names.
    lambda_patch
        Weight of the patch term.
    """

    settings: Stage2Config
    depends: tuple[Any, ...] = ()
    name: str = "stage2"
    lambda_patch: float = 0.0

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Fit the MIL by `distillation_loss` and round it to half precision."""
        fit = self._fit_stored if self.settings.features == "stored" else self._fit_on_the_fly
        mil = yield from fit(context, teacher, student)
        round_to_half(mil)  # what is measured is what the bundle holds
        return replace(student, mil=mil)

    def _fit_stored(
        self, context: RunContext, teacher: TeacherOutputs, student: Student
    ) -> Generator[Event, None, MIL]:
        settings = self.settings
        bags = stored_bags(context, teacher, student, settings.attention_transfer, self.lambda_patch)
        plan = context.fit_plan(self.name, settings, self.depends)
        return (yield from fit_mil(student.require_mil(), distillation_loss(settings), bags, settings, plan))

    def _fit_on_the_fly(
        self, context: RunContext, teacher: TeacherOutputs, student: Student
    ) -> Generator[Event, None, MIL]:
        """Fit on patches that are augmented and encoded anew in every epoch. The encoder stays frozen."""
        # The loop of stage 3 with a frozen encoder: both encode bags of pixels, which are drawn and turned anew.
        settings = self.settings
        fitting = fit_end_to_end(
            (student.encoder, student.require_mil()),
            distillation_loss(settings),
            pixel_bags(context, teacher, settings.attention_transfer, self.lambda_patch),
            settings,
            context.fit_plan(self.name, settings, self.depends),
            lr=settings.lr,
            input_px=context.config.student_input_px,
        )
        return (yield from fitting)[1]  # the encoder is unchanged


@dataclass(frozen=True)
class LabelTraining:
    """Specification of the labels-only baseline: the teacher's settings and loss, on LR features.

    Attributes
    ----------
    settings
        The teacher's.
    depends
        Values that the result depends on in addition; part of the checkpoint key.
    name
        Name of the fit in events and file names.
    lambda_patch
        Weight of the patch term.
    """

    settings: TeacherConfig
    depends: tuple[Any, ...] = ()
    name: str = "labels_only"
    lambda_patch: float = 0.0

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Fit the MIL by cross-entropy alone and round it to half precision."""
        bags = stored_bags(context, teacher, student, None, self.lambda_patch)  # None: without the teacher's outputs
        plan = context.fit_plan(self.name, self.settings, self.depends)
        mil = yield from fit_mil(student.require_mil(), label_loss, bags, self.settings, plan)
        round_to_half(mil)
        return replace(student, mil=mil)
