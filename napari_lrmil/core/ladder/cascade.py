"""Cascade: begin at the cheapest rung, and climb only if its set of classes leaves the answer open.

The policy is the same for a slide that is read now and for figures of all rungs that were measured before.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from napari_lrmil.core.events import Event
from napari_lrmil.core.formatting import format_duration
from napari_lrmil.core.ladder.climb import Climber, Cost, MissingRung, RungFigures, RungResult
from napari_lrmil.core.ladder.rungs import Rung
from napari_lrmil.core.models.limits import SET_COVERAGE

State = Literal["answered", "went up", "missing", "over budget", "not needed"]


@dataclass(frozen=True, eq=False)
class CascadeStep:
    """What a cascade did with one rung of a slide.

    Attributes
    ----------
    rung
        The rung.
    state
        ``answered`` for the rung whose answer holds; ``went up`` if its set was left open; ``missing`` if the slide
        cannot be read there; ``over budget`` if it would have taken, or took, too long; else ``not needed``.
    reason
        One sentence for ``missing`` and ``over budget``.
    """

    rung: Rung
    state: State
    reason: str = ""


@dataclass(frozen=True, eq=False)
class CascadeResult:
    """Outcome of a cascade on one slide.

    Attributes
    ----------
    answer
        Figures of the rung whose answer holds.
    steps
        Every rung of the ladder, in the order of climbing.
    cost
        Cost of all rungs that were read, with opening the slide, and of a rung that was stopped.
    is_settled
        Whether the set of the answer has one class, or the answer is of the finest rung, which is not asked for one.
    """

    answer: RungFigures
    steps: tuple[CascadeStep, ...]
    cost: Cost
    is_settled: bool

    @property
    def went_up(self) -> bool:
        """Whether a finer rung than the first was needed."""
        return any(step.state == "went up" for step in self.steps)


def is_open(figures: RungFigures, coverage: float = SET_COVERAGE) -> bool:
    """Return whether the set of classes leaves the answer open: it has several classes, or there is none."""
    classes = figures.set_at(coverage)
    return classes is None or len(classes.classes) > 1


def estimate_seconds(current: RungFigures, rung: Rung, n_patches: int) -> float:
    """Return the seconds that a rung is expected to take, from the pace of the one before it.

    The pace is that of a pixel. A teacher with a larger encoder takes longer than this.
    """
    pixels = n_patches * rung.input_px**2 / (current.n_patches * current.rung.input_px**2)
    return current.pace_seconds * pixels


def run_cascade(
    climber: Climber, budget: float | None = None
) -> Generator[Event, None, tuple[CascadeResult, RungResult]]:
    """Climb the rungs of an open slide, and return the outcome with the whole result of the answering rung.

    Parameters
    ----------
    climber
        Slide and ladder.
    budget
        Wall seconds for the slide, from its opening on. A rung is not begun if it is expected to exceed them, and is
        stopped if it does. The first rung is always read to its end. None: no limit.

    Raises
    ------
    LrmilError
        If the slide can be read at no rung.
    """
    began = time.perf_counter() - climber.open_seconds
    rungs, answer = climber.ladder.rungs, None
    steps, cost = list[CascadeStep](), Cost(climber.open_seconds)
    missing = list[MissingRung]()
    for rung in rungs:
        if answer is not None:
            outcome = yield from _climb_within(climber, answer.figures, rung, began, budget)
        else:
            outcome = yield from climber.try_read(rung)
        if isinstance(outcome, RungResult):
            steps += [] if answer is None else [CascadeStep(answer.rung, "went up")]
            answer, cost = outcome, cost + outcome.figures.added
            if not is_open(outcome.figures):
                break
        elif isinstance(outcome, MissingRung):
            steps.append(CascadeStep(rung, "missing", outcome.reason))
            missing.append(outcome)
        else:
            steps.append(CascadeStep(rung, "over budget", outcome.reason))
            cost += outcome.cost
            break
    if answer is None:
        raise missing[0].error
    return _finished(answer.figures, rungs, steps, cost), answer


def replay_cascade(
    figures: Sequence[RungFigures], budget: float | None = None, coverage: float = SET_COVERAGE
) -> CascadeResult:
    """Return what a cascade would have done, from the figures of all rungs of a slide.

    Parameters
    ----------
    figures
        At least one rung, in the order of climbing.
    budget
        See `run_cascade`. A rung that is stopped costs the share of its CPU-seconds that the time allows.
    coverage
        Coverage of the sets that decide.
    """
    answer, steps, cost = figures[0], list[CascadeStep](), Cost(figures[0].open_seconds) + figures[0].added
    for finer in figures[1:]:
        if not is_open(answer, coverage):
            break
        left = None if budget is None else budget - cost.seconds
        if left is not None and estimate_seconds(answer, finer.rung, finer.n_patches) > left:
            steps.append(CascadeStep(finer.rung, "over budget", _not_begun(left)))
            break
        if left is not None and finer.added.seconds > left:
            share = left / finer.added.seconds
            cost += Cost(left, share * finer.added.cpu_seconds, round(share * finer.added.pixels))
            steps.append(CascadeStep(finer.rung, "over budget", STOPPED))
            break
        steps.append(CascadeStep(answer.rung, "went up"))
        answer, cost = finer, cost + finer.added
    return _finished(answer, [f.rung for f in figures], steps, cost, coverage)


STOPPED = "stopped when the budget was spent"


def _not_begun(left: float) -> str:
    return f"not begun: it is expected to take longer than the {format_duration(max(0.0, left))} that are left"


@dataclass(frozen=True)
class _OverBudget:
    """A rung that was not begun, or stopped, with what it cost until then."""

    reason: str
    cost: Cost


def _climb_within(
    climber: Climber, current: RungFigures, rung: Rung, began: float, budget: float | None
) -> Generator[Event, None, RungResult | MissingRung | _OverBudget]:
    """Read a rung if it fits into the budget, and stop it when the budget is spent."""
    if budget is None:
        return (yield from climber.try_read(rung))
    n_patches = climber.count_patches(rung)
    if isinstance(n_patches, MissingRung):
        return n_patches
    left = budget - (time.perf_counter() - began)
    if estimate_seconds(current, rung, n_patches) > left:
        return _OverBudget(_not_begun(left), Cost())
    start, cpu, decoded = time.perf_counter(), time.process_time(), climber.slide.pixels_decoded
    with closing(climber.try_read(rung)) as events:
        while time.perf_counter() - began <= budget:
            try:
                yield next(events)
            except StopIteration as end:
                outcome: RungResult | MissingRung = end.value
                return outcome
    pixels = climber.slide.pixels_decoded - decoded
    return _OverBudget(STOPPED, Cost(time.perf_counter() - start, time.process_time() - cpu, pixels))


def _finished(
    answer: RungFigures,
    rungs: Sequence[Rung],
    steps: Sequence[CascadeStep],
    cost: Cost,
    coverage: float = SET_COVERAGE,
) -> CascadeResult:
    """Return the outcome, with a step for every rung in the order of climbing."""
    by_rung = {step.rung: step for step in [*steps, CascadeStep(answer.rung, "answered")]}
    ordered = tuple(by_rung.get(rung) or CascadeStep(rung, "not needed") for rung in rungs)
    is_settled = answer.rung is rungs[-1] or not is_open(answer, coverage)
    return CascadeResult(answer, ordered, cost, is_settled)
