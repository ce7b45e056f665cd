"""Several runs in one call: every fold with every seed, each a folder of its own, and a summary that pools no folds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrmil_training.config import TrainConfig, dump_config, load_config
from lrmil_training.data.cohort import Cohort, require_classes
from lrmil_training.data.splits import hold_out_test, make_folds
from lrmil_training.evaluation.evaluate import protocol
from lrmil_training.evaluation.summary import summarise
from lrmil_training.report.report import REPORT, write_report
from lrmil_training.runs.event_log import BUNDLE, CONFIG, METRICS, EventLog
from lrmil_training.runs.lock import STOP
from lrmil_training.stages.methods import STUDENT
from lrmil_training.stages.pipeline import run_stages
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.atomic_files import write_json, write_text
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Progress
from napari_lrmil.core.models.bundle import CARD
from napari_lrmil.core.results.cohort_tables import merge_failures

RUNS_FOLDER = "runs"  # folder of the single runs


@dataclass(frozen=True)
class SeriesPart:
    """One run of a series: a seed on one fold; fold None is the cohort's fixed split."""

    fold: int | None
    seed: int
    cohort: Cohort

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"seed{self.seed}" if self.fold is None else f"fold{self.fold}-seed{self.seed}"


def is_series(run: RunContext) -> bool:
    """Return whether the configuration asks for more than one run."""
    return run.config.seeds > 1 or run.config.folds > 0


def list_parts(run: RunContext) -> list[SeriesPart]:
    """Return the runs of a series; folds are dealt by the first seed alone, so that all seeds see the same.

    Raises
    ------
    CohortError
        Where there are too few patients for the folds, or a side lacks a class.
    """
    config = run.config
    folds: list[tuple[int | None, Cohort]] = [(None, run.cohort)]
    if config.folds:
        folds = list(enumerate(make_folds(run.cohort, config.folds, config.seed, by_site=config.by_site)))
    for _, cohort in folds:
        require_classes(cohort, ("train", "val"))
    seeds = range(config.seed, config.seed + config.seeds)
    return [SeriesPart(fold, seed, cohort) for seed in seeds for fold, cohort in folds]


def run_series(run: RunContext) -> Generator[Event, None, None]:
    """Run what is missing of a series, and write the figures of all and their summary."""
    done = []
    parts = list_parts(run)
    aside = len(hold_out_test(run.cohort)) if run.config.folds else 0
    if aside:
        yield Notice(
            f"{aside} slides are on the table's fixed test side and stay out of the folds; measure them afterwards "
            "with `napari-lrmil evaluate`, or leave the column split empty to deal them too"
        )
    for count, part in enumerate(parts):
        yield Progress("runs", count, len(parts), "runs")
        one = _part_context(run, part)
        yield from _run_part(one)
        merge_failures(run.folder, [run.folder / RUNS_FOLDER / begun.name for begun in parts[: count + 1]])
        metrics = json.loads((one.folder / METRICS).read_text(encoding="utf-8"))
        done.append({"fold": part.fold, "seed": part.seed, "metrics": metrics})
    yield Progress("runs", len(parts), len(parts), "runs")
    flat = [{"fold": one["fold"], "seed": one["seed"], **one["metrics"]} for one in done]
    write_json(
        run.folder / METRICS,
        {"protocol": protocol(run.config.folds, run.config.seeds), "runs": flat, "summary": summarise(done)},
    )
    best = max(zip(parts, done, strict=True), key=lambda pair: _validation_auroc(pair[1]["metrics"]))[0]
    shutil.copytree(run.folder / RUNS_FOLDER / best.name / BUNDLE, run.folder / BUNDLE, dirs_exist_ok=True)
    yield Finished(run.folder)


def _validation_auroc(metrics: dict[str, Any]) -> float:
    """Return the student's AUROC on validation slides: what chooses the run whose bundle is shared."""
    value = metrics[STUDENT]["val"]["auroc"]["value"]
    return -1.0 if value is None else float(value)


def _part_context(run: RunContext, part: SeriesPart) -> RunContext:
    """Return one run of the series; HR features are shared, for they depend on neither fold nor seed."""
    alone = {"seed": part.seed, "seeds": 1, "folds": 0, "features": run.features_folder}
    config = run.config.model_copy(update=alone)
    folder, stop = run.folder / RUNS_FOLDER / part.name, run.folder / STOP
    return replace(run, config=config, cohort=part.cohort, folder=folder, stop=stop)


def _run_part(run: RunContext) -> Iterator[Event]:
    """Do one run, unless it is there whole: the report is the last that is written, and the first to go."""
    stored = run.folder / CONFIG
    there = all((run.folder / file).exists() for file in (METRICS, Path(BUNDLE) / CARD, REPORT))
    if there and _has_config(stored, run.config):
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / REPORT).unlink(missing_ok=True)  # or that of an earlier attempt would vouch for this one
    write_text(stored, dump_config(run.config))
    with EventLog(run.folder) as log:
        for event in run_stages(run):
            log.write(event)
            if not isinstance(event, Finished):
                yield event
    write_report(run.folder, run.cohort.path)


def _has_config(file: Path, config: TrainConfig) -> bool:
    """Return whether a stored configuration is this one; fields that its version did not have count as defaults."""
    try:
        return file.exists() and load_config(file) == config
    except LrmilError:
        return False
