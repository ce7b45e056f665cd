"""Series of runs: every fold with every seed, each in its own folder, and a summary that pools no folds.

Slides of different folds are scored by different models, so their scores are never pooled; see `summary`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lrmil_training.config import TrainConfig, dump_config, load_config
from lrmil_training.data.calibration_split import set_calibration_aside
from lrmil_training.data.cohort import Cohort, require_classes
from lrmil_training.data.splits import hold_out_test, make_folds, require_inner_folds
from lrmil_training.evaluation.comparison_table import CHOSEN, SERIES_HEADER, series_rows, write_comparison
from lrmil_training.evaluation.evaluate import describe_protocol
from lrmil_training.evaluation.summary import find_best_run, summarise_runs
from lrmil_training.report.report import write_report
from lrmil_training.runs.event_log import BUNDLE, CONFIG, METRICS, REPORT_FILE, RUNS_FOLDER, EventLog
from lrmil_training.runs.lock import STOP_FILE
from lrmil_training.stages.pipeline import run_stages
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.atomic_files import write_json, write_text
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Progress
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.models.card import CARD
from napari_lrmil.core.models.cohort_distance import EMBEDDINGS
from napari_lrmil.core.results.cohort_tables import merge_failures


@dataclass(frozen=True)
class SeriesPart:
    """One run of a series.

    Attributes
    ----------
    fold
        Number of the test fold; None for the cohort's fixed split.
    seed
        Seed of the run.
    cohort
        The slides, with the splits of this fold.
    """

    fold: int | None
    seed: int
    cohort: Cohort

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"seed{self.seed}" if self.fold is None else f"fold{self.fold}-seed{self.seed}"


def is_series(config: TrainConfig) -> bool:
    """Return whether the configuration asks for more than one run."""
    return config.seeds > 1 or config.folds > 0


def list_parts(context: RunContext) -> list[SeriesPart]:
    """Return the runs of a series. Folds depend on the first seed alone, so that all seeds use the same folds.

    Raises
    ------
    CohortError
        If there are too few patients for the folds or inner folds, or a side lacks a class.
    """
    config = context.config
    folds: list[tuple[int | None, Cohort]] = [(None, context.cohort)]
    if config.folds:
        folds = list(enumerate(make_folds(context.cohort, config.folds, config.seed, by_site=config.by_site)))
    share = config.split.calibration
    folds = [(fold, set_calibration_aside(cohort, share, config.seed)) for fold, cohort in folds]
    for _, cohort in folds:  # checked before the first run, which takes hours
        require_classes(cohort, ("train", "val"))
    # Seeds outside, folds inside: a stopped series has whole rounds of folds.
    seeds = range(config.seed, config.seed + config.seeds)
    parts = [SeriesPart(fold, seed, cohort) for seed in seeds for fold, cohort in folds]
    for part in parts:
        require_inner_folds(part.cohort, config.selection.inner_folds, part.seed, by_site=config.by_site)
    return parts


def run_series(context: RunContext) -> Generator[Event, None, None]:
    """Run the missing parts of a series, and write the metrics of all parts with their summary.

    The bundle of the series is that of the part with the best student on validation slides.
    """
    config, parts = context.config, list_parts(context)
    yield from _notice_of_held_out_slides(context)
    yield from (Notice(text) for text in parts[0].cohort.notices if text not in context.cohort.notices)
    results = []
    for count, part in enumerate(parts):
        yield Progress("runs", count, len(parts), "runs")
        part_context = _part_context(context, part)
        yield from _run_part(part_context)
        # After every part, so that a series that is stopped lists what failed so far.
        started = [context.folder / RUNS_FOLDER / other.name for other in parts[: count + 1]]
        merge_failures(context.folder, started)
        metrics = json.loads((part_context.folder / METRICS).read_text(encoding="utf-8"))
        results.append({"fold": part.fold, "seed": part.seed, "metrics": metrics})
    yield Progress("runs", len(parts), len(parts), "runs")
    runs = [{"fold": result["fold"], "seed": result["seed"], **result["metrics"]} for result in results]
    summary = summarise_runs(results)
    series = {"protocol": describe_protocol(config.folds, config.seeds), "runs": runs, "summary": summary}
    if config.compare:
        aggregator = CHOSEN if config.selection.aggregators else config.teacher.aggregator
        write_comparison(context.folder, series_rows(summary, aggregator), SERIES_HEADER)
    write_json(context.folder / METRICS, series)
    best_run = find_best_run(runs)
    assert best_run is not None  # every part has validation slides, which `list_parts` requires
    best = next(part for part, run in zip(parts, runs, strict=True) if run is best_run)
    best_bundle = context.folder / RUNS_FOLDER / best.name / BUNDLE
    (context.folder / BUNDLE / EMBEDDINGS).unlink(missing_ok=True)  # of an earlier best, if this one has none
    shutil.copytree(best_bundle, context.folder / BUNDLE, dirs_exist_ok=True)
    yield Finished(context.folder)


def _notice_of_held_out_slides(context: RunContext) -> Iterator[Notice]:
    held_out = len(hold_out_test(context.cohort)) if context.config.folds else 0
    if held_out:
        are, stay, them = ("is", "stays", "it") if held_out == 1 else ("are", "stay", "them")
        yield Notice(
            f"{format_count(held_out, 'slide')} {are} on the table's fixed test side and {stay} out of the folds; "
            f"measure {them} afterwards with `napari-lrmil evaluate`, or leave the column split empty to deal them too"
        )


def _part_context(context: RunContext, part: SeriesPart) -> RunContext:
    """Return the context of one part. All parts share HR features, which depend on neither fold nor seed."""
    changes = {"seed": part.seed, "seeds": 1, "folds": 0, "features": context.features_folder}
    return replace(
        context,
        config=context.config.model_copy(update=changes),
        cohort=part.cohort,
        folder=context.folder / RUNS_FOLDER / part.name,
        stop=context.folder / STOP_FILE,
    )


def _run_part(context: RunContext) -> Iterator[Event]:
    """Run one part unless its folder is complete.

    The report is the last file of a part that is written, and the first that is deleted. Otherwise the report of an
    earlier attempt would mark an unfinished folder as complete.
    """
    config_file, report = context.folder / CONFIG, context.folder / REPORT_FILE
    is_complete = all((context.folder / file).exists() for file in (METRICS, Path(BUNDLE) / CARD, REPORT_FILE))
    if is_complete and _has_config(config_file, context.config):
        return
    context.folder.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    write_text(config_file, dump_config(context.config))
    with EventLog(context.folder, context.hidden_folders) as log:
        for event in run_stages(context):
            log.write(event)
            if not isinstance(event, Finished):  # the series has its own
                yield event
    write_report(context.folder, context.cohort.path, full_paths=context.full_paths)


def _has_config(file: Path, config: TrainConfig) -> bool:
    """Return whether a stored configuration equals `config`; fields that its version did not have are at defaults."""
    try:
        return file.exists() and load_config(file) == config
    except LrmilError:
        return False
