"""Colour normalisation of a run: the statistics of every slide, and the target from the training slides."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from lrmil_training.data.cohort import require_classes
from lrmil_training.data.stain_store import stored_stain
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.errors import CohortError, LrmilError
from napari_lrmil.core.events import Event, Notice, Progress
from napari_lrmil.core.patching.stain import StainStatistics, StainTarget, StainTransform, mean_stain

STAGE = "colour"


def normalise_stain(context: RunContext) -> Generator[Event, None, RunContext]:
    """Return the context with a colour transform for every slide, or unchanged if the configuration has none.

    The target is the mean of the training slides: validation and test slides must not influence the fit. Statistics are
    stored with the features, so that a later start does not measure them again.

    Raises
    ------
    CohortError
        If a slide cannot be measured. One that was left out would change the target of all others.
    """
    method, cohort = context.config.stain.normalise, context.cohort
    if method == "none":
        return context
    require_classes(cohort, ("train", "val"))
    measured: dict[str, StainStatistics] = {}
    for count, row in enumerate(cohort.slides):
        yield Progress(STAGE, count, len(cohort.slides), "slides")
        try:
            config = context.config
            measured[row.name] = stored_stain(context.features_folder, row, config.plan, config.tissue)
        except LrmilError as error:
            reason = str(error).removeprefix(f"{row.path}: ")
            raise CohortError(
                cohort.path,
                f"the colour of slide {row.name} cannot be measured ({reason}); take the slide out of the table, "
                "or set stain.normalise=none",
            ) from error
    yield Progress(STAGE, len(cohort.slides), len(cohort.slides), "slides")
    target = StainTarget(method, mean_stain([measured[s.name] for s in cohort.of("train")]))
    transforms = {name: StainTransform(method, own, target.statistics) for name, own in measured.items()}
    yield from (Notice(t.warning, name) for name, t in transforms.items() if t.warning)
    slides = tuple(replace(s, stain=transforms[s.name]) for s in cohort.slides)
    return replace(context, cohort=replace(cohort, slides=slides), stain=target)
