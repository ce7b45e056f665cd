"""Use of the outlines beside slides in a run: off where there are none, and the sentences of log, card and report."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace

from lrmil_training.data.lesion_targets import NO_EFFECT
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.patching.grid import NestedGrid


def switch_off_without_outlines(context: RunContext) -> Generator[Event, None, RunContext]:
    """Return the run without the patch term if no training slide has outlines, after a notice; otherwise the run."""
    if context.config.lambda_patch == 0 or context.lesions.can_teach:
        return context
    yield Notice(NO_EFFECT)
    return replace(context, config=context.config.model_copy(update={"lambda_patch": 0.0}))


def note_outlines(context: RunContext, grids: Mapping[str, NestedGrid]) -> Iterator[Event]:
    """Yield notices on the slides and patches that outlines speak for; none without the patch term."""
    yield from (Notice(text) for text in describe_outlines(context, grids))


def describe_outlines(context: RunContext, grids: Mapping[str, NestedGrid]) -> list[str]:
    """Return the counts of slides and patches, then a sentence for each file that meets no patch."""
    if context.config.lambda_patch == 0:
        return []
    return context.lesions.describe(grids, high=context.config.distil)
