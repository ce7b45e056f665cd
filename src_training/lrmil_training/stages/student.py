"""Start of a student: its initial encoder, its LR features, and the MIL that stage 2 or 3 goes on from."""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from lrmil_training.data.features import find_encoder, make_lr_features
from lrmil_training.data.teacher_targets import feature_statistics
from lrmil_training.stages.bag_fitting import seeded_mil
from lrmil_training.stages.outputs import Student, TeacherOutputs
from lrmil_training.stages.run_context import RunContext, stage_seed
from napari_lrmil.core.encoders import AlignedEncoder, build_encoder, round_to_half
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.models.mil import MIL


def initial_encoder(context: RunContext, teacher: TeacherOutputs, *, aligned: bool) -> AlignedEncoder:
    """Return the student's encoder before distillation: a copy of the teacher's encoder, or another network.

    Parameters
    ----------
    context
        The run; its configuration names the network.
    teacher
        Source of the statistics that standardise an aligned encoder's embeddings.
    aligned
        True if the embeddings are, or stage 1 will bring them, in the teacher's standardised space. Otherwise the
        encoder keeps its own width, because a projection that nobody trained would be random.
    """
    name = context.config.encoder.student
    source = context.encoder if name == "teacher" else find_encoder(name)
    copy = build_encoder(source.spec)
    copy.load_state_dict(source.encoder.state_dict())  # a copy: the teacher must not learn with the student
    # Seed of the projection's weights; forked, so that other draws do not depend on whether a student was made.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(context.config.seed, "student"))
        student = AlignedEncoder(copy, context.encoder.encoder.dim if aligned else copy.dim)
    if aligned:
        student.set_standard(teacher.embedding_statistics.mean, teacher.embedding_statistics.deviation)
    return student.eval()


@dataclass(frozen=True)
class UntrainedEncoder:
    """The encoder without stage 1: as it starts, but rounded to half precision as in a bundle."""

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Round the encoder."""
        round_to_half(student.encoder)
        return student
        yield  # makes this a generator, as all stages are, though it has no event


@dataclass(frozen=True)
class LrFeatures:
    """LR features of all slides by the student's frozen encoder, on the LR patches of the stored grids."""

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Extract the missing features."""
        grids = {name: targets.grid for name, targets in teacher.slides.items()}
        request = context.lr_request(student.encoder)
        features = yield from make_lr_features(context.cohort, request, student.encoder, context.device, grids)
        return replace(student, features=features)


@dataclass(frozen=True)
class InitialMil:
    """Initial weights of the student's MIL.

    Attributes
    ----------
    seed_name
        Name that, with the run's seed, gives the seed of the weights.
    copies_teacher
        Take the weights of the teacher's MIL.
    standardises
        Standardise instances by the statistics of the student's own LR features. Needed if the encoder is not aligned
        with the teacher; an aligned encoder gives standardised embeddings.
    is_frozen
        No stage fits the MIL: it stays the teacher's.
    notice
        Message to the user, if the configuration asked for another start.
    """

    seed_name: str
    copies_teacher: bool = False
    standardises: bool = False
    is_frozen: bool = False
    notice: str = ""

    def run(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> Generator[Event, None, Student]:
        """Make the MIL."""
        mil = self._start(context, teacher, student)
        if self.standardises:
            features = student.require_features()
            statistics = feature_statistics([features[s.name] for s in context.cohort.of("train")])
            mil.set_standard(statistics.mean, statistics.deviation)
        if self.notice:
            yield Notice(self.notice)
        # But not the teacher's statistics: they are those of HR features that are not standardised.
        if self.copies_teacher and context.head is None:
            mil.load_state_dict(teacher.require_mil().state_dict() | {"mean": mil.mean, "deviation": mil.deviation})
        if self.is_frozen:
            mil.eval().requires_grad_(False)
            round_to_half(mil)  # a given teacher is not; what is measured is what the bundle holds
        return replace(student, mil=mil)

    def _start(self, context: RunContext, teacher: TeacherOutputs, student: Student) -> MIL:
        """Return a MIL of random weights, or a copy of a given teacher, which can have another architecture."""
        if self.copies_teacher and context.head is not None:
            mil = copy.deepcopy(teacher.require_mil()).requires_grad_(True)
            mil.set_standard(torch.zeros(mil.dim), torch.ones(mil.dim))  # the student's embeddings are standardised
            return mil
        seed = stage_seed(context.config.seed, self.seed_name)
        settings, classes = context.config.teacher, len(context.cohort.classes)
        return seeded_mil(student.encoder.dim, classes, settings, seed, of_student=True)
