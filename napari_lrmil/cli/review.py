"""Command ``review``: agreement of reviewers with each other and with the model."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Return the verdicts of several files, one for each slide and reviewer.

    Raises
    ------
    ReviewError
        If a file cannot be read, or holds another verdict of a reviewer on a slide than an earlier file.
    """
    from napari_lrmil.core.errors import ReviewError
    from napari_lrmil.core.worklist.review import read_review

    rows: dict[tuple[str, str], ReviewRow] = {}
    for file in dict.fromkeys(files):
        table = read_review(file)
        for key in dict.fromkeys((row.slide, row.reviewer) for row in table.rows):
            row = table.verdict(*key)
            if row is None or rows.setdefault(key, row) == row:
                continue
            slide, reviewer = map(printable, key)
            raise ReviewError(
                file, f"holds another verdict of {reviewer} on {slide} than a folder before; leave one out"
            )
    return list(rows.values())


# ---------------------------------------------------------------- screen


def _print_comparison(comparison: ReviewComparison) -> None:
    """Print counts and kappas, and what limits them."""
    print_result(_table([_COUNT_HEAD, *map(_count_cells, comparison.counts)]))
    print_result("")
    print_result(_table([_PAIR_HEAD, *map(_pair_cells, comparison.pairs)]))
    for pair in comparison.pairs:
        if pair.reason:
            print_notice(f"{pair.first} and {pair.second}", pair.reason)
    if len(comparison.models) > 1:
        names = ", ".join(f"{printable(name)} ({sha256[:8]})" for name, sha256 in comparison.models)
        print_notice("", f"the verdicts are on answers of several models: {names}")


_COUNT_HEAD = ("reviewer", "slides", "agree", "disagree", "unsure", "blind", "no class")
_PAIR_HEAD = ("raters", "slides", "patients", "same class", "kappa", "95 % interval")


def _count_cells(counts: ReviewerCounts) -> tuple[str, ...]:
    numbers = (counts.slides, counts.agree, counts.disagree, counts.unsure, counts.blind, counts.without_class)
    return (printable(counts.reviewer), *map(str, numbers))


def _pair_cells(pair: PairAgreement) -> tuple[str, ...]:
    share = "–" if pair.same_class is None else f"{pair.same_class:.0%}"
    kappa = "–" if pair.kappa is None else f"{pair.kappa:.2f}"
    bounds = "–" if pair.low is None or pair.high is None else f"{pair.low:.2f} to {pair.high:.2f}"
    names = f"{printable(pair.first)} · {printable(pair.second)}"
    return (names, str(pair.slides), str(pair.patients), share, kappa, bounds)


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
        )
        for pair in comparison.pairs
    ]
    write_csv(folder / AGREEMENT_TABLE, [head, *rows])
    names = [counts.reviewer for counts in comparison.counts]
    columns = [f"{name} {column}" for name in names for column in ("verdict", "class", "model", "comment")]
    slides = [
        [slide, *(cell for name in names for cell in _slide_cells(verdicts.get(name)))]
        for slide, verdicts in comparison.slides.items()
    ]
    write_csv(folder / SLIDES_TABLE, [["slide", *columns], *slides])


def _slide_cells(row: ReviewRow | None) -> tuple[str, ...]:
    return ("",) * 4 if row is None else (row.verdict.value, row.label, row.predicted, row.comment)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
