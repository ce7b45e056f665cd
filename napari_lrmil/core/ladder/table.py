"""Contents of ``ladder.json`` and ``cascade.json``, and the same as text and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.formatting import ABOUT_MODEL, UNDEFINED, format_probability
from napari_lrmil.core.ladder.attention import compare_attention
from napari_lrmil.core.ladder.cascade import CascadeResult
from napari_lrmil.core.ladder.climb import MissingRung, RungFigures, RungResult
from napari_lrmil.core.ladder.rungs import STANDARD_MPP, Ladder, Rung, magnification_text
from napari_lrmil.core.ladder.schema import CASCADE_TABLE, LADDER_TABLE, CascadeFile, LadderFile, RungEntry
from napari_lrmil.core.models.limits import SET_COVERAGE
from napari_lrmil.core.results.cohort_tables import WARNING_SEPARATOR
from napari_lrmil.core.results.warning_summary import summarize_slides
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.version import __version__

NO_MODEL = "no model"
NO_SET = "no set"
COLUMNS = (
    "slide", "magnification", "mpp", "network", "bundle", "state", "reason", "predicted", "prediction_set",
    "same_answer", "spearman", "jaccard_top10", "js_divergence", "patches", "pixels", "seconds", "cpu_seconds",
)  # fmt: skip
CASCADE_COLUMNS = (
    "slide", "answered_by", "predicted", "prediction_set", "went_up", "is_settled", "seconds", "cpu_seconds", "pixels",
)  # fmt: skip


def build_ladder_file(
    slide: Slide, ladder: Ladder, outcomes: Sequence[RungResult | MissingRung], request_sha256: str
) -> LadderFile:
    """Return the content of ``ladder.json``.

    Parameters
    ----------
    slide, ladder
        What was read.
    outcomes
        One for each rung, the coarsest first; at least one is a result.
    request_sha256
        Hash of models and options.
    """
    reference = [outcome for outcome in outcomes if isinstance(outcome, RungResult)][-1]
    entries = [_ladder_entry(outcome, reference, slide.warnings) for outcome in outcomes]
    absent = ladder.missing_text
    entries += [
        RungEntry(magnification=name, mpp=mpp, state=NO_MODEL, reason=absent[name])
        for mpp in STANDARD_MPP
        if (name := magnification_text(mpp)) in absent
    ]
    rungs = tuple(sorted(entries, key=lambda entry: -entry.mpp))  # stable: a student stays before its teacher
    return LadderFile(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        request_sha256=request_sha256,
        classes=ladder.classes,
        coverage=SET_COVERAGE,
        rungs=rungs,
        version=__version__,
        reference=reference.rung.label,
        text=describe_changes(rungs),
    )


def build_cascade_file(
    slide: Slide,
    ladder: Ladder,
    result: CascadeResult,
    figures: Sequence[RungFigures],
    request: tuple[str, float | None],
) -> CascadeFile:
    """Return the content of ``cascade.json``.

    Parameters
    ----------
    slide, ladder
        What was read.
    result
        Outcome of the cascade.
    figures
        Figures of the rungs that were read.
    request
        Hash of models and options, and the budget.
    """
    by_rung = {f.rung: f for f in figures}
    rungs = tuple(_entry(step.rung, step.state, step.reason, by_rung.get(step.rung)) for step in result.steps)
    answer, classes = result.answer, result.answer.set_at()
    return CascadeFile(
        slide=slide.name,
        slide_fingerprint=slide.fingerprint,
        request_sha256=request[0],
        classes=ladder.classes,
        coverage=SET_COVERAGE,
        rungs=rungs,
        version=__version__,
        answered_by=answer.rung.label,
        predicted=answer.predicted,
        probabilities=dict(answer.probabilities),
        prediction_set=None if classes is None else classes.classes,
        went_up=result.went_up,
        is_settled=result.is_settled,
        budget=request[1],
        seconds=result.cost.seconds,
        cpu_seconds=result.cost.cpu_seconds,
        pixels_decoded=result.cost.pixels,
        text=_describe_cascade(result),
    )


def describe_changes(rungs: Sequence[RungEntry]) -> str:
    """Return a sentence on where the answer changes between the rungs that were read, the coarsest first."""
    read = [rung for rung in rungs if rung.was_read]
    finest = read[-1]
    if len(read) == 1:
        return f"{finest.predicted} at {finest.label}; no other resolution could be read"
    if all(rung.predicted == finest.predicted for rung in read):
        return f"{finest.predicted} at every resolution from {read[0].label} to {finest.label}"
    last = max(i for i, rung in enumerate(read) if rung.predicted != finest.predicted)
    coarse, fine = read[last], read[last + 1]
    at_fine = fine.label if fine is finest else f"{fine.label} and finer"
    text = f"the answer changes between {coarse.label} and {fine.label}: {coarse.predicted} at {coarse.label}, "
    text += f"{finest.predicted} at {at_fine}"
    again = [rung.label for rung in read[:last] if rung.predicted == finest.predicted]
    return f"{text} (and at {', '.join(again)})" if again else text


def ladder_lines(file: LadderFile) -> list[list[str]]:
    """Return the table of a slide for the screen, head first, the finest rung on top."""
    head = [
        "",
        "answer",
        *file.classes,
        f"set at {100 * file.coverage:g} %",
        "same",
        "ρ",
        "patches",
        "MPix",
        "CPU-s",
        "s",
    ]
    rungs = list(reversed(file.rungs))
    return [head, *(_line(rung, file.classes) for rung in rungs), *_missing_sets(rungs)]


def _missing_sets(rungs: Sequence[RungEntry]) -> list[list[str]]:
    """Return a line for each reason why resolutions that were read have no set of classes."""
    labels: dict[str, list[str]] = {}
    for rung in rungs:
        if rung.was_read and rung.prediction_set is None and rung.no_set_reason:
            labels.setdefault(rung.no_set_reason, []).append(rung.label)
    return [["", f"{NO_SET} at {', '.join(names)}: {reason}"] for reason, names in labels.items()]


def _line(rung: RungEntry, classes: Sequence[str]) -> list[str]:
    if not rung.was_read:
        return [rung.label, rung.reason]
    same = {True: "yes", False: "no", None: ""}[rung.same_answer]
    rho = "" if rung.spearman is None else f"{rung.spearman:.2f}"
    return [
        rung.label,
        rung.predicted or "",
        *(format_probability(rung.probabilities[name]) for name in classes),
        NO_SET if rung.prediction_set is None else " or ".join(rung.prediction_set),
        same,
        rho,
        f"{rung.n_patches:,}",
        f"{(rung.pixels_decoded or 0) / 1e6:.1f}",
        f"{rung.cpu_seconds:.2f}",
        f"{rung.seconds:.2f}",
    ]


def summarize_ladders(files: Sequence[LadderFile]) -> list[list[str]]:
    """Return the table of a cohort for the screen: for each rung its agreement with the finest one, and its cost."""
    lines = [["", "slides", "same answer", "one class in the set", "ρ", "CPU-s", "s"]]
    labels = {rung.label: rung.mpp for file in files for rung in file.rungs if rung.network is not None}
    for label in sorted(labels, key=lambda name: labels[name]):
        read = [rung for file in files for rung in file.rungs if rung.label == label and rung.was_read]
        sets = [rung.prediction_set for rung in read if rung.prediction_set is not None]
        lines.append(
            [
                label,
                str(len(read)),
                _mean_text([float(bool(rung.same_answer)) for rung in read], "{:.0%}"),
                _mean_text([float(len(classes) == 1) for classes in sets], "{:.0%}"),
                _mean_text([rung.spearman for rung in read], "{:.2f}"),
                _mean_text([rung.cpu_seconds for rung in read], "{:.2f}"),
                _mean_text([rung.seconds for rung in read], "{:.2f}"),
            ]
        )
    return lines


def _mean_text(values: Iterable[float | None], form: str) -> str:
    """Return the mean of the defined values; a dash if there are none."""
    defined = [value for value in values if value is not None]
    return form.format(sum(defined) / len(defined)) if defined else UNDEFINED


def summarize_rung_warnings(files: Sequence[LadderFile]) -> Iterator[str]:
    """Yield a line for each warning of each resolution, the coarsest first, with the slides that have it.

    The model whose prediction is stored is left out: its warnings are those of ``prediction.json``.
    """
    warnings: dict[str, dict[str, tuple[str, ...]]] = {}  # resolution -> slide -> warnings
    for file in files:
        stored = [rung for rung in file.rungs if rung.was_read][-1].bundle_sha256
        for rung in file.rungs:
            if rung.was_read and rung.bundle_sha256 != stored:
                warnings.setdefault(f"{rung.label} ({rung.bundle})", {})[file.slide] = rung.warnings
    for name, by_slide in warnings.items():
        yield from (f"{name}: {line}" for line in summarize_slides(by_slide))


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text with aligned columns. A short line may run over: it holds a sentence."""
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines
    )


def read_ladder_files(folder: Path) -> tuple[list[LadderFile], list[StoredError]]:
    """Return the ladders of all slides in a folder of results, and the errors of those that cannot be read."""
    files, errors = list[LadderFile](), list[StoredError]()
    for path in sorted(folder.glob(f"*/{LadderFile.FILE_NAME}")):
        try:
            files.append(LadderFile.read(path.parent))
        except StoredError as error:
            errors.append(error)
    return files, errors


def read_cascade_files(folder: Path) -> tuple[list[CascadeFile], list[StoredError]]:
    """Return the cascades of all slides in a folder of results, and the errors of those that cannot be read."""
    files, errors = list[CascadeFile](), list[StoredError]()
    for path in sorted(folder.glob(f"*/{CascadeFile.FILE_NAME}")):
        try:
            files.append(CascadeFile.read(path.parent))
        except StoredError as error:
            errors.append(error)
    return files, errors


def write_ladder_table(folder: Path, files: Sequence[LadderFile]) -> None:
    """Write ``ladder.csv``: a row for each slide and rung."""
    classes = list(dict.fromkeys(name for file in files for name in file.classes))
    rows = [_row(file.slide, rung, classes) for file in files for rung in file.rungs]
    write_csv(folder / LADDER_TABLE, [[*COLUMNS, *(f"probability_{name}" for name in classes), "warnings"], *rows])


def _row(slide: str, rung: RungEntry, classes: Sequence[str]) -> list[object]:
    values: Mapping[str, object] = rung.model_dump() | {
        "slide": slide,
        "patches": rung.n_patches,
        "pixels": rung.pixels_decoded,
        "prediction_set": None if rung.prediction_set is None else " | ".join(rung.prediction_set),
    }
    cells = [values[column] for column in COLUMNS] + [rung.probabilities.get(name) for name in classes]
    cells.append(printable(WARNING_SEPARATOR.join(rung.warnings)))
    return ["" if cell is None else cell for cell in cells]


def write_cascade_table(folder: Path, files: Sequence[CascadeFile]) -> None:
    """Write ``cascade.csv``: a row for each slide."""
    classes = list(dict.fromkeys(name for file in files for name in file.classes))
    rows: list[list[object]] = []
    for file in files:
        sets = "" if file.prediction_set is None else " | ".join(file.prediction_set)
        cost = (file.seconds, file.cpu_seconds, file.pixels_decoded)
        row = [file.slide, file.answered_by, file.predicted, sets, file.went_up, file.is_settled, *cost]
        rows.append([*row, *(file.probabilities.get(name, "") for name in classes)])
    write_csv(folder / CASCADE_TABLE, [[*CASCADE_COLUMNS, *(f"probability_{name}" for name in classes)], *rows])


def _ladder_entry(outcome: RungResult | MissingRung, reference: RungResult, about_slide: Sequence[str]) -> RungEntry:
    if isinstance(outcome, MissingRung):
        return _entry(outcome.rung, "missing", outcome.reason, None)
    entry = _entry(outcome.rung, "read", "", outcome.figures)
    same = outcome.figures.predicted == reference.figures.predicted
    agreement = None if outcome is reference else compare_attention(outcome.network, reference.network)
    warnings = [text for text in outcome.prediction.warnings if text not in about_slide]
    warnings = [text for text in warnings if not text.startswith(ABOUT_MODEL)]
    update: dict[str, object] = {"same_answer": same, "warnings": tuple(warnings)}
    if agreement is not None:
        update |= {
            "spearman": agreement.spearman,
            "jaccard_top10": agreement.jaccard_top10,
            "js_divergence": agreement.js_divergence,
            "compared_patches": agreement.n_patches,
        }
    return entry.model_copy(update=update)


def _entry(rung: Rung, state: str, reason: str, figures: RungFigures | None) -> RungEntry:
    """Return the entry of a rung, with its figures if it was read."""
    bundle = rung.bundle
    entry = RungEntry(
        magnification=rung.magnification,
        mpp=rung.mpp,
        network=rung.network,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        state=state,
        reason=reason,
    )
    if figures is None:
        return entry
    classes, alone = figures.set_at(), figures.alone
    return entry.model_copy(
        update={
            "predicted": figures.predicted,
            "probabilities": dict(figures.probabilities),
            "calibrated": rung.temperature is not None and figures.is_whole_slide,
            "prediction_set": None if classes is None else classes.classes,
            "no_set_reason": figures.no_set_reason if classes is None else "",
            "n_patches": figures.n_patches,
            "pixels_decoded": alone.pixels,
            "seconds": alone.seconds,
            "cpu_seconds": alone.cpu_seconds,
        }
    )


def _describe_cascade(result: CascadeResult) -> str:
    """Return the outcome of a cascade as a sentence."""
    answer = result.answer
    classes = answer.set_at()
    holds = "" if classes is None else f"; {classes.text}"
    text = f"{answer.predicted} {format_probability(answer.probabilities[answer.predicted])}, answered at "
    text += f"{answer.rung.label}{holds}"
    why = [f"{step.rung.label} {step.reason}" for step in result.steps if step.state in ("over budget", "missing")]
    return "; ".join([text, *why])
