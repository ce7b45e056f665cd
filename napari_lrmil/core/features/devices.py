"""Compute devices of this machine."""

from __future__ import annotations

import os

import torch

from napari_lrmil.core.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")


def available_devices() -> dict[str, str]:
    """Return device name -> label for people, such as ``cuda`` -> ``GPU 0 · NVIDIA A100``."""
    cores = f"CPU, {os.cpu_count() or 1} cores"
    labels = {"cpu": cores}
    if torch.cuda.is_available():
        labels["cuda"] = f"GPU 0 · {torch.cuda.get_device_name(0)}"
    if torch.backends.mps.is_available():
        labels["mps"] = "GPU · Apple"
    best = next(name for name in ("cuda", "mps", "cpu") if name in labels)
    return {"auto": labels[best], **labels}


def limit_torch_threads() -> None:
    """Let torch use all cores but one, for the whole process.

    Programs call it at their start. With one thread per core on a busy machine, threads mostly wait for the slowest,
    and the window needs a core too.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


def resolve_device(name: str) -> torch.device:
    """Return the device of a name. ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ConfigError
        If the device is unknown or absent.
    """
    is_available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if is_available[d]))
    if not is_available.get(name, False):
        raise ConfigError(
            f"no device '{name}' on this machine; available: auto, "
            f"{', '.join(device for device, present in is_available.items() if present)}"
        )
    return torch.device(name)
