"""Command ``review``: agreement of reviewers with each other and with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.cli.console import print_notice, print_result
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.extras import require_extra
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from lrmil_training.evaluation.reviewers import PairAgreement, ReviewComparison, ReviewerCounts
    from napari_lrmil.core.worklist.review import ReviewRow

AGREEMENT_TABLE, SLIDES_TABLE = "review_agreement.csv", "review_slides.csv"
FoldersArgument = Annotated[list[Path], typer.Argument(help="folders of results with a review.csv, or such files")]


def review(
    folders: FoldersArgument,
    reviewers: Annotated[
        list[str] | None, typer.Option("--reviewer", help="compare these reviewers only; repeat for each")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder for the tables; if not given: that of the first review.csv")
    ] = None,
) -> None:
    """Compare the verdicts of reviewers with each other and with the model: counts, Cohen's kappa, tables."""
    require_extra("train", "the comparison of reviewers")
    from lrmil_training.evaluation.reviewers import compare_reviewers

    files = [find_review_file(path) for path in folders]
    out = folder or files[0].parent
    require_writable(out)
    comparison = compare_reviewers(join_reviews(files), reviewers or ())
    _print_comparison(comparison)
    write_tables(out, comparison)
    print_result(f"tables -> {out / AGREEMENT_TABLE}, {out / SLIDES_TABLE}")


def find_review_file(path: Path) -> Path:
    """Return the ``review.csv`` at a path: the file itself, in the folder, or in its folder of results.

    Raises
    ------
    ReviewError
        If there is none.
    """
    from napari_lrmil.core.errors import ReviewError
    from napari_lrmil.core.worklist.build import RESULTS_FOLDER
    from napari_lrmil.core.worklist.review import REVIEW_FILE

    for candidate in (path, path / REVIEW_FILE, path / RESULTS_FOLDER / REVIEW_FILE):
        if candidate.is_file():
            return candidate
    raise ReviewError(path, f"no {REVIEW_FILE} here; give the folder of results in which the verdicts were given")


def join_reviews(files: Sequence[Path]) -> list[ReviewRow]:
    """Return the verdicts of several files, one for each slide and reviewer. A slide may have its ending or not.

    Raises
    ------
    ReviewError
        If a file cannot be read, or holds another verdict of a reviewer on a slide than an earlier file, or if a name
        without ending could be two slides.
    """
    from napari_lrmil.core.errors import ReviewError
    from napari_lrmil.core.worklist.review import common_slide_names, read_review

    tables = {file: read_review(file) for file in dict.fromkeys(files)}
    try:
        names = common_slide_names(row.slide for table in tables.values() for row in table.rows)
    except ValueError as error:
        raise ReviewError(files[0], f"{error}; write the ending in every table") from error
    rows: dict[tuple[str, str], ReviewRow] = {}
    for file, table in tables.items():
        for slide, reviewer in dict.fromkeys((row.slide, row.reviewer) for row in table.rows):
            verdict = table.verdict(slide, reviewer)
            if verdict is None:
                continue
            row = replace(verdict, slide=names[slide])
            if rows.setdefault((row.slide, reviewer), row) == row:
                continue
            raise ReviewError(
                file,
                f"holds another verdict of {printable(reviewer)} on {printable(slide)} than a folder before; leave one "
                "out",
            )
    return list(rows.values())


# ---------------------------------------------------------------- screen


def _print_comparison(comparison: ReviewComparison) -> None:
    """Print counts and kappas, and what limits them. With several models, each of them has rows of its own."""
    has_several = len(comparison.models) > 1
    print_result(_table([_COUNT_HEAD, *(_count_cells(counts, has_several) for counts in comparison.counts)]))
    print_result("")
    print_result(_table([_PAIR_HEAD, *(_pair_cells(pair, has_several) for pair in comparison.pairs)]))
    for pair in comparison.pairs:
        if pair.reason:
            print_notice(f"{pair.first} and {_second(pair, has_several)}", pair.reason)
    if has_several:
        names = ", ".join(printable(model.text) for model in comparison.models)
        print_notice("", f"the verdicts are on answers of several models, which are not pooled: {names}")


_COUNT_HEAD = ("reviewer", "slides", "agree", "disagree", "unsure", "blind", "no class")
_PAIR_HEAD = ("raters", "slides", "patients", "same class", "kappa", "95 % interval")
NO_ANSWER = "no answer"


def _count_cells(counts: ReviewerCounts, has_several: bool) -> tuple[str, ...]:
    numbers = (counts.slides, counts.agree, counts.disagree, counts.unsure, counts.blind, counts.without_class)
    model = f" · {counts.model.text if counts.model is not None else NO_ANSWER}" if has_several else ""
    return (printable(f"{counts.reviewer}{model}"), *map(str, numbers))


def _pair_cells(pair: PairAgreement, has_several: bool) -> tuple[str, ...]:
    share = "–" if pair.same_class is None else f"{pair.same_class:.0%}"
    kappa = "–" if pair.kappa is None else f"{pair.kappa:.2f}"
    bounds = "–" if pair.low is None or pair.high is None else f"{pair.low:.2f} to {pair.high:.2f}"
    names = f"{printable(pair.first)} · {printable(_second(pair, has_several))}"
    return (names, str(pair.slides), str(pair.patients), share, kappa, bounds)


def _second(pair: PairAgreement, has_several: bool) -> str:
    """Return the name of the second rater; that of a model names which one, if there are several."""
    return f"{pair.second} {pair.model.text}" if has_several and pair.model is not None else pair.second


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


# ---------------------------------------------------------------- files


def write_tables(folder: Path, comparison: ReviewComparison) -> None:
    """Write ``review_agreement.csv``, a row per pair of raters, and ``review_slides.csv``, a row per slide."""
    from napari_lrmil.core.csv_files import write_csv

    head = ("first", "second", "slides", "patients", "same_class", "kappa", "low", "high", "interval", "reason")
    rows = [
        (
            *(pair.first, pair.second, pair.slides, pair.patients),
            *map(_figure, (pair.same_class, pair.kappa, pair.low, pair.high)),
            *(pair.interval, pair.reason),
            *((pair.model.bundle, pair.model.bundle_sha256) if pair.model is not None else ("", "")),
        )
        for pair in comparison.pairs
    ]
    write_csv(folder / AGREEMENT_TABLE, [(*head, *_MODEL_COLUMNS), *rows])
    names = comparison.reviewers
    columns = [f"{name} {column}" for cells in (_VERDICT_COLUMNS, _MODEL_COLUMNS) for name in names for column in cells]
    slides = [[slide, *_slide_cells(names, verdicts)] for slide, verdicts in comparison.slides.items()]
    write_csv(folder / SLIDES_TABLE, [["slide", *columns], *slides])


_VERDICT_COLUMNS = ("verdict", "class", "model", "comment")  # of each reviewer in ``review_slides.csv``
_MODEL_COLUMNS = ("bundle", "bundle_sha256")  # after all of them: earlier versions did not write these


def _slide_cells(names: Sequence[str], verdicts: Mapping[str, ReviewRow]) -> list[str]:
    rows = [verdicts.get(name) for name in names]
    cells = [(row.verdict.value, row.label, row.predicted, row.comment) if row else ("",) * 4 for row in rows]
    models = [(row.bundle, row.bundle_sha256) if row else ("",) * 2 for row in rows]
    return [cell for of_reviewer in (*cells, *models) for cell in of_reviewer]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
