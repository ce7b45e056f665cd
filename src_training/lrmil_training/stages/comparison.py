"""Further HR teachers of a run, each with another aggregator, on the same features and splits.

They are compared and not distilled: students learn from the run's own teacher alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from lrmil_training.evaluation.comparison_table import compared_method
from lrmil_training.stages.outputs import HrFeatures, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.teacher import fit_teacher
from napari_lrmil.core.events import Event, Progress
from napari_lrmil.core.models.card import Aggregator

STAGE = "comparison"


def fit_compared_teachers(context: RunContext, hr: HrFeatures) -> Generator[Event, None, dict[str, TeacherOutputs]]:
    """Fit the teachers of `TrainConfig.compare` and return them by method; a fit that has ended is not repeated.

    The run's own aggregator is left out, because its teacher is there already, unless that teacher is given. All have
    the teacher's other settings, and validation chooses the epoch of each.
    """
    own = None if context.head is not None else context.config.teacher.aggregator
    names = [name for name in context.config.compare if name != own]
    teachers = {}
    for count, name in enumerate(names):
        yield Progress(STAGE, count, len(names), "teachers")
        method = compared_method(name)
        teachers[method] = yield from fit_teacher(_with_aggregator(context, name), hr, method)
    if names:
        yield Progress(STAGE, len(names), len(names), "teachers")
    return teachers


def _with_aggregator(context: RunContext, name: Aggregator) -> RunContext:
    teacher = context.config.teacher.model_copy(update={"aggregator": name})
    return replace(context, config=context.config.model_copy(update={"teacher": teacher}), teacher_epochs=None)
