"""What can be chosen on this machine: devices and shipped models."""

from __future__ import annotations

import os

DEVICES = ("auto", "cpu", "cuda", "mps")


def devices_here() -> dict[str, str]:
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


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the models that come with the program; loads torch."""
    from napari_lrmil.core.bundle import CARD, SHIPPED

    return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
