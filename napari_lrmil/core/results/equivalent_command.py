"""The command line that does the same as what was just done in the window."""

from __future__ import annotations

import shlex
from pathlib import Path

from napari_lrmil.core.inference.teacher_patches import TeacherPatches

PROGRAM = "napari-lrmil"


def predict_command(
    slide: Path,
    *,
    bundle: str | Path,
    out: Path,
    device: str = "auto",
    mpp: float | None = None,
    runtime: str = "torch",
    teacher: TeacherPatches = TeacherPatches.NONE,
    roi: Path | None = None,
    keep: Path | None = None,
    exclude: Path | None = None,
    tissue: Path | None = None,
    report: bool = False,
    reader: str = "auto",
) -> str:
    """Return the ``predict`` call that gives the same numbers, quoted for a POSIX shell.

    Parameters
    ----------
    slide
        The slide's file, or the folder of a DICOM slide.
    bundle
        Folder of the bundle, or name of a shipped one.
    out
        Where the results go.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``; a device's number is left out, as the command knows none.
    mpp
        µm per level-0 pixel, only where the user gave it in place of the slide's own.
    runtime
        What ran the encoders: torch, as in the window, or another that ``--runtime`` takes.
    teacher
        LR patches that the teacher reads.
    roi
        GeoJSON file of the region that was analysed, if not the whole slide.
    keep, exclude
        GeoJSON files of regions outside which all was left out, and of those that were left out.
    tissue
        PNG file of a tissue mask changed by hand.
    report
        Whether the report is written too.
    reader
        What ``--reader`` was given.
    """
    path = str(slide)
    words = [PROGRAM, "predict", f"./{path}" if path.startswith("-") else path]  # or it would read as an option
    words += ["--bundle", str(bundle), "--device", device.partition(":")[0], "--runtime", runtime]
    words += ["--mpp", repr(float(mpp))] if mpp is not None else []  # every digit, or the grid may differ
    for option, file in (("--roi", roi), ("--keep", keep), ("--exclude", exclude), ("--tissue", tissue)):
        words += [option, str(file)] if file is not None else []
    words += ["--teacher", str(teacher), "--out", str(out)]
    words += ["--report"] if report else []
    words += ["--reader", reader] if reader != "auto" else []
    return shlex.join(words)
