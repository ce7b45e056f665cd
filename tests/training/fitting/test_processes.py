"""Two processes on one machine: the same problem, the same answer within noise, and ends that are clean."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrmil_training.config import build_config
from lrmil_training.fitting import fit as fitting
from lrmil_training.fitting.checkpoints import find_checkpoint
from lrmil_training.fitting.fit import fit
from lrmil_training.fitting.plan import FitPlan
from lrmil_training.fitting.processes import run_in_processes
from lrmil_training.fitting.trainer import FitFactory
from lrmil_training.train import train
from napari_lrmil.core import processes
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Progress
from support.fits import Toy, drained, figures, maker, plan
from support.phantoms import copy_cohort
from support.processes import forking
from support.trained import Trained

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no process groups")


@pytest.fixture
def prepared_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ranks begin with torch and lightning loaded; how users' ranks begin, one test with two of them shows."""
    monkeypatch.setattr(processes, "start_context", forking)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_continue(tmp_path: Path) -> None:
    """Validation sees every sample once; broken off and resumed it ends where it would have."""
    alone, _ = drained(fit(maker(5), plan(tmp_path / "one")))
    two = plan(tmp_path / "two", devices=2)
    stream = fit(maker(5), two)
    first = []
    for event in stream:
        first.append(event)
        if isinstance(event, Progress) and event.done == 3:
            break
    stream.close()
    assert not multiprocessing.active_children()
    rest, state = drained(fit(maker(5), two))
    both = figures(first) | figures(rest)
    assert min(e.done for e in rest if isinstance(e, Progress)) == 4
    assert {v for (name, _), v in both.items() if name == "val/n"} == {47.0}
    best = [max(v for (name, _), v in values.items() if name == "val/auroc") for values in (figures(alone), both)]
    assert best[0] > 0.8
    assert best[1] == pytest.approx(best[0], abs=0.05)
    assert len(both) == 4 * max(e.done for e in rest if isinstance(e, Progress))
    assert set(state) == set(Toy().state_dict())
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"toy.ckpt", "toy.done"}


class _Faulty(Toy):
    """Fails in the second process only."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if self.global_rank == 1 and (self.current_epoch, index) == (1, 1) and len(batch[0]) > 8:
            if self.fault == "dies":
                os._exit(7)
            if self.fault == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            batch = [batch[0] * float("nan"), batch[1]]
        return super().training_step(batch, index)


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_ranks")
def test_the_first_reason_is_told(tmp_path: Path) -> None:
    """A rank that fails takes the others with it: what they then complain of is not the reason."""
    parallel = plan(tmp_path, devices=2)
    with pytest.raises(LrmilError, match="'ce' is nan at batch 1"):
        drained(fit(maker(5, _Faulty, fault="nan"), parallel))
    checkpoint = find_checkpoint(parallel)
    assert checkpoint is not None and checkpoint.epoch == 1
    with pytest.raises(LrmilError, match="toy: process 2 of 2 ended with code 7 and no reason"):
        drained(fit(maker(5, _Faulty, fault="dies"), parallel))
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_ranks")
def test_memory_that_runs_out_in_one_process_halves_the_batch_of_all(tmp_path: Path) -> None:
    """Steps must stay in step."""
    events, _ = drained(fit(maker(5, _Faulty, fault="memory"), plan(tmp_path, devices=2, epochs=2)))
    assert [e.message.rpartition(" with ")[2] for e in events if isinstance(e, Notice)] == ["0.5 of the batch size"]


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_ranks")
def test_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    """Closing the stream does not wait for the epoch, and one device can be asked to run in a process too."""
    stream = fit(maker(5), replace(plan(tmp_path, epochs=5000, patience=5000), strategy="ddp"))
    next(e for e in stream if isinstance(e, Progress))
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 60  # 5000 epochs take longer
    assert not multiprocessing.active_children()


def _keys(figures: object, where: str = "") -> set[str]:
    """Return the paths of all figures."""
    if not isinstance(figures, dict):
        return {where}
    return {path for key, value in figures.items() for path in _keys(value, f"{where}/{key}")}


@pytest.mark.slow
@pytest.mark.timeout(600)  # four times two processes start, slowly on a busy machine
@pytest.mark.usefixtures("prepared_ranks")
def test_a_whole_run_trains_every_stage_in_two_processes(
    phantoms: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, stages 1, 2 and 3 of an epoch each: as many processes as asked, and the same figures measured."""
    table = copy_cohort(phantoms, tmp_path / "cohort", train=4, val=2, test=2)
    short = {"epochs": 1, "min_epochs": 1}
    settings = {
        "hr_patch_px": 64,
        "lr_patch_px": 64,
        "bootstrap": 100,
        "baselines": [],
        "features": str(trained.copy_features(tmp_path / "features")),
        "encoder": {"teacher": trained.encoder},
        "teacher": short,
        "stage1": {"epochs": 1, "patches_per_slide": 4, "batch_size": 4},
        "stage2": short,
        "stage3": short | {"patches_per_slide": 4, "lr": 1e-4},
    }
    started: list[tuple[str, int]] = []

    def noted(make: FitFactory, plan: FitPlan, scale: float) -> Generator[Event, None, None]:
        started.append((plan.stage, plan.devices))
        return run_in_processes(make, plan, scale)

    monkeypatch.setattr(fitting, "run_in_processes", noted)
    metrics, cpu = {}, torch.device("cpu")
    for devices in (1, 2):
        run = tmp_path / f"run{devices}"
        *_, last = train(table, run, build_config(settings | {"devices": devices}), cpu)
        assert isinstance(last, Finished)
        metrics[devices] = json.loads((run / "metrics.json").read_text())
    assert started == [(stage, 2) for stage in ("teacher", "stage1", "stage2", "stage3")]
    assert not multiprocessing.active_children()
    # Whether two validation slides give an operating point depends on their scores, which differ between the two runs.
    one, two = ({key for key in _keys(metrics[n]) if "/operating_point/" not in key} for n in (1, 2))
    assert one == two and "/student/test/paired/teacher/value" in two
    assert metrics[1] != metrics[2], "two processes take half the steps"
