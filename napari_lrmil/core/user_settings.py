"""What a user told us once and what this machine taught us: one JSON file, believed last and never fatal."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.errors import ConfigError, DiskFullError
from napari_lrmil.core.events import Notice

FILE = "remembered.json"
FOLDER_VARIABLE = "NAPARI_LRMIL_CONFIG"  # a folder that stands in for the user's own
RUNS = 7  # the last runs of a kind that an expected time comes from
DEVICES = ("auto", "cpu", "cuda", "mps")
ATTENTION_MODES = ("raw", "percentile", "log")
NETWORKS = ("student", "teacher")

_WRITING = threading.Lock()  # a temporary name holds the process only: threads of one process take turns


@dataclass(frozen=True)
class Settings:
    """What the window keeps from one start to the next.

    Attributes
    ----------
    tile_cache_mb
        Decoded tiles kept in memory for the screen, MiB.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    attention_mode
        ``raw``, ``percentile`` or ``log``.
    opacity
        Of the attention layer, 0 to 1.
    smooth
        Whether attention is interpolated between patches; as computed unless asked.
    sections_open
        Names of the dock's sections that are not folded.
    live
        Whether analysis follows the view.
    icc
        Whether colours go through the slide's ICC profile on the screen.
    """

    tile_cache_mb: int = 256
    device: str = "auto"
    attention_mode: Literal["raw", "percentile", "log"] = "raw"
    opacity: float = 0.5
    smooth: bool = False
    sections_open: tuple[str, ...] = ("navigation", "attention")
    live: bool = False
    icc: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check = _CHECKS[field.name]
            if not check.holds(value):
                raise ConfigError(f"the setting {field.name} is {value!r}; expected {check.expected}")


@dataclass(frozen=True)
class _Check:
    """What a setting must be, and how a file's value becomes it."""

    holds: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(choices: tuple[str, ...]) -> _Check:
    return _Check(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


_FLAG = _Check(lambda value: isinstance(value, bool), "true or false")
_CHECKS = {
    "tile_cache_mb": _Check(
        lambda value: isinstance(value, int) and _is_number(value) and 16 <= value <= 65_536,
        "a whole number of MiB from 16 to 65536",
    ),
    "device": _one_of(DEVICES),
    "attention_mode": _one_of(ATTENTION_MODES),
    "opacity": _Check(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "smooth": _FLAG,
    "sections_open": _Check(
        lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value), "a list of names"
    ),
    "live": _FLAG,
    "icc": _FLAG,
}


@dataclass(frozen=True)
class LoadedSettings:
    """Settings as far as they could be read; one caution names everything that could not."""

    settings: Settings
    caution: Notice | None


@dataclass(frozen=True)
class ThroughputKey:
    """What seconds per patch depend on: the model, where it runs, and which of its networks."""

    bundle_sha256: str
    device: str
    network: str

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ConfigError(f"the network is {self.network!r}; expected {' or '.join(NETWORKS)}")

    @property
    def text(self) -> str:
        """The key as the file has it."""
        return f"{self.bundle_sha256} {self.device} {self.network}"


class SettingsStore:
    """One JSON file of answers, paces and settings. Broken content counts as absent; unknown content is kept.

    Parameters
    ----------
    folder
        Where the file lies; by default the one that `FOLDER_VARIABLE` names, else the user's own.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = (Path(folder) if folder is not None else default_folder()) / FILE

    # ------------------------------------------------------------ resolution

    def remember_mpp(self, fingerprint: str, mpp: float) -> None:
        """Keep what the user said of a slide, micrometres per level-0 pixel.

        Raises
        ------
        ConfigError
            Where `mpp` is no positive number, or the file cannot be written.
        """
        if not _is_number(mpp) or mpp <= 0:
            raise ConfigError(f"microns per pixel is {mpp!r}; expected a positive number, such as 0.5")
        self._change("mpp", fingerprint, lambda _: float(mpp))

    def remembered_mpp(self, fingerprint: str) -> float | None:
        """Return what the user once said of a slide, or None."""
        value = self._part("mpp").get(fingerprint)
        return float(value) if _is_number(value) and value > 0 else None

    # ------------------------------------------------------------ pace

    def remember_pace(self, key: ThroughputKey, seconds: float, patches: int) -> None:
        """Add a run's wall seconds for its patches to the last `RUNS` of its kind; a run of no patch tells nothing."""
        if patches < 1 or not _is_number(seconds) or seconds <= 0:
            return
        self._change("pace", key.text, lambda old: [*_runs(old), [float(seconds), int(patches)]][-RUNS:])

    def expected_seconds(self, key: ThroughputKey, patches: int) -> float | None:
        """Return the seconds that `patches` should take by the last runs of that kind, or None before the first.

        By the median of seconds per patch, each run weighing as many patches as it had: one run on a busy machine
        moves it little, and a glance at four patches less than a whole slide.
        """
        runs = np.array(_runs(self._part("pace").get(key.text)), dtype=np.float64).reshape(-1, 2)
        if not len(runs):
            return None
        pace = runs[:, 0] / runs[:, 1]
        order = np.argsort(pace)
        weight = np.cumsum(runs[order, 1])
        return float(pace[order][np.searchsorted(weight, weight[-1] / 2)]) * patches

    # ------------------------------------------------------------ settings

    def load_settings(self) -> LoadedSettings:
        """Return the settings; what is unknown or broken is left at its default and told in one caution."""
        content, broken = self._read()
        stored = content.get("settings", {})
        if not isinstance(stored, dict):
            stored, broken = {}, True
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
        good = {name: value for name, value in values.items() if name in _CHECKS and _CHECKS[name].holds(value)}
        bad = sorted(set(values) - set(good))
        if not broken and not bad:
            return LoadedSettings(Settings(**good), None)
        what = f"the settings {', '.join(bad)} are" if bad else "it is"
        told = f"{what} unknown or broken in {self.path} and left at the default; save the settings to mend the file"
        return LoadedSettings(Settings(**good), Notice(told, FILE))

    def save_settings(self, settings: Settings) -> None:
        """Keep the settings; see `load_settings`."""
        values = asdict(settings) | {"sections_open": list(settings.sections_open)}
        with _WRITING:
            content, _ = self._read()
            self._write({**content, "settings": values})

    # ------------------------------------------------------------ the file

    def _part(self, name: str) -> Mapping[str, Any]:
        part = self._read()[0].get(name)
        return part if isinstance(part, dict) else {}

    def _change(self, part: str, key: str, change: Callable[[Any], Any]) -> None:
        """Read, change one entry, and write the whole again: another process may lose an entry, never the file."""
        with _WRITING:
            content, _ = self._read()
            old = content.get(part)
            entries = old if isinstance(old, dict) else {}
            self._write({**content, part: {**entries, key: change(entries.get(key))}})

    def _read(self) -> tuple[dict[str, Any], bool]:
        """Return the content, and whether there is a file that could not be read as such."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}, False
        except (OSError, ValueError):
            return {}, True
        return (content, False) if isinstance(content, dict) else ({}, True)

    def _write(self, content: Mapping[str, Any]) -> None:
        try:
            write_json(self.path, content)
        except DiskFullError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a NaN that someone wrote by hand
            raise ConfigError(
                f"{self.path} could not be written ({error}); set {FOLDER_VARIABLE} to a folder that you may write to"
            ) from error


def default_folder() -> Path:
    """Return the folder that `FOLDER_VARIABLE` names, else the user's own for this program."""
    import platformdirs

    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else platformdirs.user_config_path("napari-lrmil", appauthor=False)


def _runs(stored: Any) -> list[list[float]]:
    """Return the (seconds, patches) pairs among what the file has."""
    if not isinstance(stored, list):
        return []
    return [
        run for run in stored if isinstance(run, list) and len(run) == 2 and all(_is_number(v) and v > 0 for v in run)
    ]
