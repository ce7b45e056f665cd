"""Report of a run: one self-contained HTML file, written in three steps (read the record, fill sections, render)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from lrmil_training.evaluation.metrics import explain_no_spread
from lrmil_training.report.run_record import method_label, read_run
from lrmil_training.report.sections import build_sections, slides_with_pictures
from lrmil_training.report.slide_pictures import write_thumbnails
from lrmil_training.runs.event_log import REPORT_FILE
from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.formatting import format_count, format_signed

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
# A value of YAML to the end of its line, perhaps after a prefix such as "file:", that is an absolute path.
_ABSOLUTE_PATH = re.compile(r"""(?m)((?:^|[\s:'"]))((?:~?/|[A-Za-z]:[\\/]|\\\\)[^'"\n]*)""")


def write_report(
    folder: Path,
    cohort_csv: Path | None = None,
    *,
    title: str | None = None,
    full_paths: bool = False,
    distilled: bool = True,
) -> Path:
    """Write ``report.html`` from the files of a run folder and return its path.

    The report of an unfinished run has no section for files that are missing, and says that the run has not finished.

    Parameters
    ----------
    folder
        Run folder with ``config.yaml``, ``events.jsonl``, ``metrics.json``, ``slides.json``, and optionally
        ``thumbnails/<slide>.jpg`` and ``attention/<method>/<slide>.h5``.
    cohort_csv
        The run's cohort; missing thumbnails are read from its slides. ``cohort.csv`` in the folder if not given.
    title
        Title of the report; the configuration's name if not given.
    distilled
        False for a bundle whose student was not distilled; a run's own configuration says so too.
    full_paths
        Whether absolute paths of the configuration stay whole; their folders may name a user.

    Raises
    ------
    LrmilError
        If one of the files exists and is damaged.
    """
    record = read_run(folder)
    write_thumbnails(folder, cohort_csv or folder / "cohort.csv", slides_with_pictures(record))
    sections = build_sections(record)
    sections["distilled"] = sections["distilled"] and distilled
    page = _render(sections | ({"title": title} if title else {}), full_paths)
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def _render(sections: Mapping[str, Any], full_paths: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = format_metric
    environment.filters["no_spread"] = explain_no_spread
    environment.filters["counted"] = format_count
    environment.filters["signed"] = format_signed
    environment.filters["share"] = _format_share
    environment.filters["name"] = method_label
    environment.filters["without_folders"] = str if full_paths else shorten_paths
    return environment.get_template("report.html.j2").render(sections)


def shorten_paths(text: str) -> str:
    """Return a configuration with the last part of each absolute path alone: the folders may name a user."""
    return _ABSOLUTE_PATH.sub(lambda match: match[1] + PureWindowsPath(match[2]).name, text)


def format_metric(value: float | None, digits: int = 3) -> str:
    """Return a metric for a table; a dash if it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def _format_share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
