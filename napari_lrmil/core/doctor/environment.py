"""Checks of the environment: versions, device, memory, extras, folders and access to the model hub."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from napari_lrmil.core.doctor.check import FAILED, NOTE, OK, Check
from napari_lrmil.core.extras import EXTRAS, missing_modules, pip_line
from napari_lrmil.version import __version__

REQUIRED = ("numpy", "torch", "openslide-python", "tifffile", "imagecodecs", "h5py", "safetensors")
OPTIONAL = ("napari",)  # `check_extras` says how to install it
TESTED_PYTHON = (3, 11)
LEAST_MEMORY_MB, LEAST_DISK_MB = 4_000, 2_000
HUB_TIMEOUT_S = 5.0


def check_versions() -> Check:
    """Return the versions of the program, of Python and of the libraries that it cannot do without."""
    versions: dict[str, str] = {}
    missing = []
    for name in (*REQUIRED, *OPTIONAL):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            missing += [name] if name in REQUIRED else []
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    text = f"napari-lrmil {__version__}, Python {platform.python_version()}, {platform.platform()}; {listed}"
    if missing:
        return Check("versions", f"{text}; missing: {', '.join(missing)}", FAILED, f"pip install {' '.join(missing)}")
    if sys.version_info[:2] != TESTED_PYTHON:
        tested = ".".join(map(str, TESTED_PYTHON))
        return Check("versions", text, NOTE, f"the tests of every version run on Python {tested}")
    return Check("versions", text)


def check_openslide() -> Check:
    """Return the version of the C library that reads slides."""
    import openslide

    return Check("OpenSlide", f"library {openslide.__library_version__}")


def check_device() -> Check:
    """Return the devices on which networks can run."""
    import torch

    from napari_lrmil.core.features.devices import available_devices

    devices = available_devices()
    listed = ", ".join(label for name, label in devices.items() if name != "auto")
    return Check("device", f"auto takes {devices['auto']}; available: {listed}; torch {torch.__version__}")


def check_memory() -> Check:
    """Return the memory of this machine or container."""
    import psutil

    from napari_lrmil.core.cohort.memory import total_memory_mb

    total, free = total_memory_mb(), psutil.virtual_memory().available / 2**20
    text = f"{total / 1024:.1f} GiB, {min(free, total) / 1024:.1f} GiB free"
    if total < LEAST_MEMORY_MB:
        return Check("memory", text, NOTE, "use --workers 1, and close other programs")
    return Check("memory", text)


def check_extras() -> tuple[Check, ...]:
    """Return, for each extra, whether it is installed."""
    checks = []
    for extra in EXTRAS:
        missing = missing_modules(extra)
        text = f"not installed: {', '.join(missing)}" if missing else "installed"
        remedy = f"if you need it: {pip_line(extra)}" if missing else ""
        checks.append(Check(f"extra {extra}", text, NOTE if missing else OK, remedy))
    return tuple(checks)


def check_folder(name: str, folder: Path, remedy: str) -> Check:
    """Return whether a folder can be written, by writing a file; a folder that was missing is removed again.

    Parameters
    ----------
    name
        Name of the check.
    folder
        The folder.
    remedy
        What to do if it cannot be written.
    """
    import psutil

    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=existing, prefix=".napari-lrmil-") as temporary:
            (Path(temporary) / "file").write_bytes(bytes(4096))
        free_mb = psutil.disk_usage(str(existing)).free / 2**20
    except OSError as error:
        return Check(name, f"{folder} cannot be written ({error.strerror or error})", FAILED, remedy)
    if free_mb < LEAST_DISK_MB:
        return Check(name, f"{folder}: only {free_mb:.0f} MiB are free", NOTE, f"free some space, or {remedy}")
    return Check(name, f"{folder} can be written, {free_mb / 1024:.0f} GiB free")


def check_folders() -> tuple[Check, ...]:
    """Return whether cache, settings, temporary files and results can be written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from napari_lrmil.core.user_folders import CACHE_VARIABLE, cache_folder
    from napari_lrmil.core.user_settings import FOLDER_VARIABLE, default_folder

    return (
        check_folder("cache", cache_folder(), f"set {CACHE_VARIABLE} to a folder that you may write to"),
        check_folder("downloaded encoders", Path(HF_HUB_CACHE), "set HF_HOME to a folder that you may write to"),
        check_folder("settings", default_folder(), f"set {FOLDER_VARIABLE} to a folder that you may write to"),
        check_folder("temporary files", _temporary_folder(), "set TMPDIR to a folder that you may write to"),
        check_folder("current folder", Path.cwd(), "change into another folder, or name one with --out"),
    )


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none of the usual folders can be written
        return Path(os.environ.get("TMPDIR", "/tmp"))


def check_hub() -> Check:
    """Return whether the hub of models can be reached. Only encoders that are named by ``hf:`` need it."""
    from huggingface_hub import constants, get_token

    token = "with" if get_token() else "without"
    if constants.HF_HUB_OFFLINE:
        return Check("model hub", "HF_HUB_OFFLINE is set", NOTE, "unset it to download encoders")
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return Check("model hub", f"{constants.ENDPOINT} answers, {token} a token")
    except urllib.error.HTTPError as error:  # an answer, if a refusal
        return Check("model hub", f"{constants.ENDPOINT} answers with status {error.code}, {token} a token")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"{constants.ENDPOINT} cannot be reached ({reason}), {token} a token"
        return Check("model hub", text, NOTE, "encoders must be files on this machine; or set HTTPS_PROXY")
