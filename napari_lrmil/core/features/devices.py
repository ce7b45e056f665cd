"""What can be chosen on this machine: devices and shipped models."""

from __future__ import annotations

import os

import torch

from napari_lrmil.core.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")


def available_devices() -> dict[str, str]:
    """Return the devices of this machine and what to call them; loads torch."""
    import torch

    cores = f"CPU, {os.cpu_count() or 1} cores"
    found = {"cpu": cores}
    if torch.cuda.is_available():
        found["cuda"] = f"GPU 0 · {torch.cuda.get_device_name(0)}"
    if torch.backends.mps.is_available():
        found["mps"] = "GPU · Apple"
    best = next(name for name in ("cuda", "mps", "cpu") if name in found)
    return {"auto": found[best], **found}


def limit_torch_threads() -> None:
    """Let torch use one core less than there are, for the whole process.

    For programs to call at their start: on a busy machine a thread per core spends its time waiting for the last, and
    the window needs one too.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


def resolve_device(name: str) -> torch.device:
    """Return the device that `name` means: auto takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ConfigError
        Where the device is unknown or not here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if here[d]))
    if not here.get(name, False):
        raise ConfigError(
            f"no device '{name}' on this machine; here: auto, {', '.join(d for d, there in here.items() if there)}"
        )
    return torch.device(name)
