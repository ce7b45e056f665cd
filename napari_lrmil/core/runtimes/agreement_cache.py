"""What was found out about a way to run an encoder, kept on disk so that the next process need not find out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from napari_lrmil.core.atomic_files import atomic_write_folder, write_json
from napari_lrmil.version import __version__

CACHE_VARIABLE = "NAPARI_LRMIL_CACHE"
CACHE_VERSION = 1  # of how networks are prepared; another one makes what is kept be made again
MAX_ENTRIES = 24  # ways on disk; those that were not used for longest go
CHECK_FILE = "verdict.json"
GRAPH_FILE, WEIGHTS_FILE = "encoder.xml", "encoder.bin"  # of OpenVINO


@dataclass(frozen=True)
class AgreementCheck:
    """What a comparison with torch in float32 found, on the machine where it was made.

    Attributes
    ----------
    agrees
        Whether attention and probabilities are the same, within what is allowed.
    reason
        The figures, in words.
    patches
        How many were compared.
    """

    agrees: bool
    reason: str
    patches: int


@dataclass(frozen=True)
class RuntimeKey:
    """Everything that a way to run an encoder, and the verdict on it, depend on.

    Attributes
    ----------
    network
        Hash of the model, and which of its encoders.
    side
        Of the patches as fed to the encoder, in pixels.
    runtime
        ``torch`` or ``openvino``.
    version
        Of the runtime.
    precision
        Number format: ``bfloat16`` or ``float32``.
    processor
        Name and abilities of what computes.
    """

    network: str
    side: int
    runtime: str
    version: str
    precision: str
    processor: str

    @property
    def folder(self) -> Path:
        """Where what is known about it is kept."""
        told = {**asdict(self), "torch": torch.__version__, "ours": __version__, "edition": CACHE_VERSION}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "runtimes" / digest[:32]


def cache_folder() -> Path:
    """Return the folder that `CACHE_VARIABLE` names, else the user's own for what can be made again."""
    import platformdirs

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("napari-lrmil", appauthor=False)


def describe_processor(device: torch.device) -> str:
    """Return name and abilities of a CPU or CUDA device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = torch.cpu.get_capabilities()
    abilities = sorted(name for name, there in found.items() if there is True)
    return " ".join([str(found.get("cpu_name", "")), *abilities])


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether a CPU or CUDA device computes in bfloat16 by itself; emulated, that is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


def load_check(way: RuntimeKey) -> AgreementCheck | None:
    """Return what an earlier process found out; None where there is nothing whole."""
    try:
        found = AgreementCheck(**json.loads((way.folder / CHECK_FILE).read_text(encoding="utf-8")))
        os.utime(way.folder)  # used just now
    except (OSError, ValueError, TypeError):
        return None
    return found


def store_check(way: RuntimeKey, verdict: AgreementCheck, write: Callable[[Path], None]) -> None:
    """Keep a verdict, and what `write` puts into the folder, for later processes.

    A folder that cannot be written keeps nothing: a cache is a convenience.
    """
    try:
        with atomic_write_folder(way.folder, (GRAPH_FILE, WEIGHTS_FILE), CHECK_FILE) as partial:
            write(partial)
            write_json(partial / CHECK_FILE, asdict(verdict))
        _drop_oldest(way.folder.parent)
    except (OSError, RuntimeError):  # the last is OpenVINO's, for a file that it cannot write
        return


def _drop_oldest(folder: Path) -> None:
    there = sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
    for old in there[MAX_ENTRIES:]:
        shutil.rmtree(old, ignore_errors=True)
