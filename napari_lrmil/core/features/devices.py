"""Compute devices of this machine.

A device is named by a text such as ``cpu`` or ``cuda:0``, which torch accepts everywhere. Torch is asked only where a
device other than the CPU can exist, because its import takes longer than a prediction without it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.site_settings import DEVICE_VARIABLE, default_device

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
_CUDA_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def device_type(device: str | torch.device) -> str:
    """Return the kind of a device: ``cpu`` for ``cpu``, ``cuda`` for ``cuda:1``."""
    return str(device).partition(":")[0]


def available_devices() -> dict[str, str]:
    """Return device name -> label for people, such as ``cuda`` -> ``GPU 0 · NVIDIA A100``."""
    cores = f"CPU, {format_count(os.cpu_count() or 1, 'core')}"
    labels = {"cpu": cores}
    if "cuda" in (names := device_names()):
        import torch

        labels["cuda"] = f"GPU 0 · {torch.cuda.get_device_name(0)}"
    if "mps" in names:
        labels["mps"] = "GPU · Apple"
    best = next(name for name in (default_device(), "cuda", "mps", "cpu") if name in labels)
    return {"auto": labels[best], **labels}


def device_names() -> tuple[str, ...]:
    """Return the kinds of devices of this machine, the preferred one first."""
    if not may_have_gpu():
        return ("cpu",)
    import torch

    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return tuple(name for name, present in is_available.items() if present)


def may_have_gpu() -> bool:
    """Return whether torch could find a GPU: Apple's, or one with CUDA or ROCm. Torch itself is not imported."""
    if "torch" in sys.modules or platform.system() == "Darwin":
        return True  # the answer of torch costs nothing now, or Apple's GPUs have no driver to look for
    try:
        if version("torch").endswith("+cpu"):
            return False
    except PackageNotFoundError:
        return False
    return any(map(_is_loadable, _CUDA_DRIVERS)) or os.path.exists("/dev/kfd")  # the device file of ROCm


def _is_loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def resolve_device(name: str) -> str:
    """Return the device of a name. ``auto`` takes that of the site's settings, or CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ConfigError
        If the device is unknown or absent.
    """
    if name == "cpu":
        return name
    if name == "auto":
        if (default := default_device()) is None:
            return device_names()[0]
        return _require_site_device(default)
    names = device_names()
    if name not in names:
        raise ConfigError(f"no device '{name}' on this machine; available: auto, {', '.join(reversed(names))}")
    return name


def _require_site_device(name: str) -> str:
    names = device_names() if name != "cpu" else ("cpu",)
    if name not in names:
        raise ConfigError(
            f"the site's settings (`device`, or {DEVICE_VARIABLE}) name the device '{name}', which this machine lacks; "
            f"give --device, available: {', '.join(reversed(names))}"
        )
    return name
