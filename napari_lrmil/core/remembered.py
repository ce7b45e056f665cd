"""What a user told us once, and what this machine's last runs took: small files in the user's configuration folder.

Nothing here is worth an error: a file that cannot be read counts as empty, an entry that makes no sense as not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Literal

from napari_lrmil.core.files import write_json

FOLDER = "NAPARI_LRMIL_CONFIG"  # environment variable that puts the folder elsewhere
LAST_RUNS = 5  # whose pace counts: a machine that was busy once is not slow for ever

PaceKey = tuple[str, str, str]  # bundle's SHA-256, device, network


@dataclass(frozen=True)
class Settings:
    """How the window was left.

    Attributes
    ----------
    tile_cache_mb
        The most that decoded tiles on the screen may take, for each slide.
    device
        Where networks compute; see `core.embed.resolve_device`.
    attention_mode, opacity, smooth
        How attention looks.
    sections_open
        Names of the parts of the dock that are unfolded.
    """

    tile_cache_mb: int = 256
    device: str = "auto"
    attention_mode: Literal["raw", "percentile", "log"] = "raw"
    opacity: float = 0.5
    smooth: bool = False
    sections_open: tuple[str, ...] = ("navigation", "attention")


CHECKS: dict[str, Any] = {
    "tile_cache_mb": lambda v: type(v) is int and v >= 16,
    "device": lambda v: v in ("auto", "cpu", "cuda", "mps"),
    "attention_mode": lambda v: v in ("raw", "percentile", "log"),
    "opacity": lambda v: type(v) in (int, float) and 0 <= v <= 1,
    "smooth": lambda v: type(v) is bool,
    "sections_open": lambda v: isinstance(v, list | tuple) and all(isinstance(name, str) for name in v),
}


class Remembered:
    """What is kept between sessions.

    Parameters
    ----------
    folder
        Where; by default the user's configuration folder, or what ``NAPARI_LRMIL_CONFIG`` names.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    # ------------------------------------------------------------ resolution

    def mpp(self, fingerprint: str) -> float | None:
        """Return the µm per pixel that was once given for a slide."""
        found = self._read("mpp.json").get(fingerprint)
        return float(found) if isinstance(found, int | float) and found > 0 else None

    def remember_mpp(self, fingerprint: str, mpp: float) -> None:
        """Keep the µm per pixel that was given for a slide."""
        self._write("mpp.json", {**self._read("mpp.json"), fingerprint: mpp})

    # ------------------------------------------------------------ pace

    def remember_pace(self, key: PaceKey, seconds: float, patches: int) -> None:
        """Keep what a run took."""
        if patches < 1 or seconds <= 0:
            return
        told, name = self._read("pace.json"), " ".join(key)
        last = [value for value in _list(told.get(name)) if isinstance(value, int | float) and value > 0]
        self._write("pace.json", {**told, name: [*last, seconds / patches][-LAST_RUNS:]})

    def expected_seconds(self, key: PaceKey, patches: int) -> float | None:
        """Return what `patches` should take by the median of the last runs; None where there were none."""
        found = _list(self._read("pace.json").get(" ".join(key)))
        last = [float(value) for value in found if isinstance(value, int | float) and value > 0]
        return median(last) * patches if last else None

    # ------------------------------------------------------------ settings

    def load_settings(self) -> Settings:
        """Return the settings, each as it is by default where nothing sensible was kept."""
        told = self._read("settings.json")
        names = [field.name for field in fields(Settings) if field.name in told]
        kept = {name: told[name] for name in names if CHECKS[name](told[name])}
        if "sections_open" in kept:
            kept["sections_open"] = tuple(kept["sections_open"])
        return Settings(**kept)

    def save_settings(self, settings: Settings) -> None:
        """Keep the settings."""
        self._write("settings.json", asdict(settings))

    # ------------------------------------------------------------ files

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a file whole; where the folder cannot be written to, nothing is remembered and nobody is stopped."""
        try:
            write_json(self.folder / name, values)
        except OSError:
            return


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def default_folder() -> Path:
    """Return the user's configuration folder for this program."""
    from platformdirs import user_config_path

    named = os.environ.get(FOLDER)
    return Path(named) if named else Path(user_config_path("napari-lrmil", appauthor=False))
