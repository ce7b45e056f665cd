"""The policy of a cascade: it climbs where the set is open, and within its budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from napari_lrmil.core.ladder import cascade
from napari_lrmil.core.ladder.cascade import CascadeResult, estimate_seconds, replay_cascade, run_cascade
from napari_lrmil.core.ladder.climb import Climber, ClimbOptions, Cost, RungFigures, RungResult
from napari_lrmil.core.ladder.rungs import Ladder, open_ladder
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.slides.slide import Slide
from support.ladders import CLOSED, OPEN, ladder_bundles, write_sets


@pytest.fixture
def ladder(tmp_path: Path) -> Ladder:
    ladder_bundles(tmp_path, 4.0, 2.0)
    return open_ladder([tmp_path], teacher=True)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, PhantomSlide("first", LESION, 1, (1400, 1100)))
    with Slide(next(folder.glob("first.tif*"))) as opened:
        yield opened


def figures(ladder: Ladder, *seconds: float, patches: tuple[int, ...] = (4, 16, 256)) -> list[RungFigures]:
    """Return figures of all rungs; every second of the network is pace and costs two CPU-seconds."""
    return [
        RungFigures(rung, {"normal": 0.4, "lesion": 0.6}, n, Cost(s, 2 * s, n), Cost(1.0, 1.0, 10), not i, 0.5, s)
        for i, (rung, s, n) in enumerate(zip(ladder.rungs, seconds, patches, strict=True))
    ]


def states(result: CascadeResult) -> list[str]:
    return [step.state for step in result.steps]


def run(slide: Slide, ladder: Ladder, budget: float | None = None) -> tuple[CascadeResult, RungResult]:
    events = run_cascade(Climber(slide, ladder, ClimbOptions("cpu")), budget)
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: tuple[CascadeResult, RungResult] = end.value
            return result


def test_an_open_set_climbs_and_a_single_class_answers(ladder: Ladder) -> None:
    rungs = figures(ladder, 1.0, 4.0, 64.0)
    result = replay_cascade(rungs)
    assert states(result) == ["went up", "went up", "answered"] and result.answer is rungs[-1] and result.went_up
    assert result.cost == Cost(0.5 + 1.0 + 69.0, 1.0 + 138.0, 10 + 276)
    write_sets(ladder.bundles[1], CLOSED)
    result = replay_cascade(rungs)
    assert states(result) == ["went up", "answered", "not needed"] and result.is_settled
    assert result.cost == Cost(6.5, 11.0, 30)
    write_sets(ladder.bundles[0], CLOSED)
    result = replay_cascade(rungs)
    assert states(result) == ["answered", "not needed", "not needed"] and not result.went_up


def test_a_rung_that_is_expected_to_take_too_long_is_not_begun(ladder: Ladder) -> None:
    rungs = figures(ladder, 1.0, 4.0, 64.0)
    assert estimate_seconds(rungs[1], ladder.rungs[2], 256) == pytest.approx(64.0)
    result = replay_cascade(rungs, budget=60.0)
    assert states(result) == ["went up", "answered", "over budget"] and not result.is_settled
    assert "not begun" in result.steps[-1].reason and result.cost == Cost(6.5, 11.0, 30)
    assert states(replay_cascade(rungs, budget=70.5)) == ["went up", "went up", "answered"]


def test_a_rung_that_takes_longer_than_expected_is_stopped(ladder: Ladder) -> None:
    """Half of its time was left, so half of its cost is lost."""
    rungs = figures(ladder, 1.0, 4.0, 160.0)
    result = replay_cascade(rungs, budget=86.5)
    assert states(result) == ["went up", "answered", "over budget"] and "stopped" in result.steps[-1].reason
    assert result.cost.seconds == 86.5 and result.cost.cpu_seconds == 11.0 + 160.0


def test_a_slide_is_read_as_the_replay_says(slide: Slide, ladder: Ladder) -> None:
    result, answer = run(slide, ladder)
    assert states(result) == ["went up", "went up", "answered"]
    assert answer.rung.is_teacher and answer.prediction.teacher is not None
    write_sets(ladder.bundles[0], CLOSED)
    result, answer = run(slide, ladder)
    assert states(result) == ["answered", "not needed", "not needed"]
    assert answer.rung is ladder.rungs[0] and answer.prediction.teacher is None


def test_the_budget_holds_for_a_slide_that_is_read(
    slide: Slide, ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rung is read whatever it takes; the next is not begun, or is stopped."""
    result, answer = run(slide, ladder, budget=0.0)
    assert states(result) == ["answered", "over budget", "not needed"]
    assert answer.rung is ladder.rungs[0] and "not begun" in result.steps[1].reason
    monkeypatch.setattr(cascade, "estimate_seconds", lambda *_: -1e9)  # it was expected to be fast
    result, answer = run(slide, ladder, budget=0.0)
    assert states(result) == ["answered", "over budget", "not needed"] and "stopped" in result.steps[1].reason
    assert answer.rung is ladder.rungs[0]


def test_a_rung_that_the_slide_lacks_leaves_the_answer_open(slide: Slide, ladder: Ladder) -> None:
    with Slide(slide.path, mpp=0.8) as coarse:
        for budget in (None, 1e6):
            result, answer = run(coarse, ladder, budget)
            assert states(result) == ["went up", "answered", "missing"] and not result.is_settled
            assert answer.rung is ladder.rungs[1]


def test_sets_of_another_coverage_decide_in_a_replay(ladder: Ladder) -> None:
    """Scores of 0.5 hold the second class, whose score is 0.6, at no coverage."""
    for bundle in ladder.bundles:
        write_sets(bundle, 0.5)
    assert states(replay_cascade(figures(ladder, 1, 1, 1), coverage=0.5))[0] == "answered"
    write_sets(ladder.bundles[0], OPEN)
    assert states(replay_cascade(figures(ladder, 1, 1, 1), coverage=0.5))[0] == "went up"
