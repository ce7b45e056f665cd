"""Command line that gives the same result as a run in the window."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.hub_bundle import is_hub_bundle

IS_WINDOWS = os.name == "nt"
PROGRAM = "napari-lrmil"
FILE_OPTIONS = ("roi", "keep", "exclude", "tissue")  # GeoJSON regions, and the PNG of an edited tissue mask


def predict_command(
    slide: Path,
    *,
    bundle: str | Path,
    out: Path,
    device: str = "auto",
    mpp: float | None = None,
    runtime: str = "torch",
    teacher: TeacherPatches = TeacherPatches.NONE,
    files: Mapping[str, Path | None] | None = None,
    report: bool = False,
    reader: str = "auto",
    full_paths: bool = True,
    allow_missing: bool = False,
    exclude_artefacts: bool = False,
) -> str:
    """Return the ``predict`` command line that gives the same numbers, quoted for the shell of this system.

    Parameters
    ----------
    device
        The index of a device, as in ``cuda:1``, is left out, because ``--device`` takes none.
    mpp
        µm per level-0 pixel, if the user gave it instead of the slide's own.
    files
        Option in `FILE_OPTIONS` -> file.
    full_paths
        Whether absolute paths are written as they are. If not, only their last part is, for files that others may see.
    allow_missing
        Whether a slide is predicted of which more than a third of the tissue is missing.
    exclude_artefacts
        Whether artefacts are left out of the tissue although the model was trained with them.
    """
    shown = str if full_paths else _without_folders
    path = shown(slide)
    arguments = [PROGRAM, "predict", f"./{path}" if path.startswith("-") else path]  # -x.svs would read as an option
    model = str(bundle) if is_hub_bundle(bundle) else shown(Path(bundle))
    arguments += ["--bundle", model, "--device", device.partition(":")[0], "--runtime", runtime]
    arguments += ["--mpp", repr(float(mpp))] if mpp is not None else []  # all digits: rounding could move the grid
    for option in FILE_OPTIONS:
        file = (files or {}).get(option)
        arguments += [f"--{option}", shown(file)] if file is not None else []
    arguments += ["--teacher", str(teacher), "--out", shown(out)]
    arguments += ["--report"] if report else []
    arguments += ["--reader", reader] if reader != "auto" else []
    arguments += ["--allow-missing"] if allow_missing else []
    arguments += ["--exclude-artefacts"] if exclude_artefacts else []
    return subprocess.list2cmdline(arguments) if IS_WINDOWS else shlex.join(arguments)


def _without_folders(path: Path) -> str:
    """Return a path without the folders above it that may have the name of a user."""
    return path.name if path.is_absolute() or ".." in path.parts else str(path)
