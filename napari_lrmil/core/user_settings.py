"""User settings and measured throughput, stored in one JSON file.

Explicit arguments override it. A corrupt file is ignored.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

import numpy as np
from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.errors import ConfigError, DiskFullError
from napari_lrmil.core.events import Notice

FILE = "remembered.json"
FOLDER_VARIABLE = "NAPARI_LRMIL_CONFIG"  # environment variable: folder to use instead of the user's
RUNS = 7  # number of recent runs behind an expected time
NETWORKS = ("student", "teacher")

_WRITING = threading.Lock()  # temporary file names contain the process only, so threads must take turns


@pydantic_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Settings:
    """Settings of the window that outlast a session.

    Attributes
    ----------
    tile_cache_mb
        Cache of decoded tiles for the screen, MiB.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    attention_mode
        ``raw``, ``percentile`` or ``log``.
    opacity
        Opacity of the attention layer, 0 to 1.
    smooth
        Whether attention is interpolated between patches for display.
    sections_open
        Names of the dock's unfolded sections.
    live
        Whether analysis follows the view.
    icc
        Whether the slide's ICC profile is applied on the screen.
    """

    tile_cache_mb: int = Field(256, ge=16, le=65_536, description="a whole number of MiB from 16 to 65536")
    device: str = Field("auto", pattern="^(auto|cpu|cuda|mps)$", description="one of auto, cpu, cuda, mps")
    attention_mode: Literal["raw", "percentile", "log"] = Field("raw", description="one of raw, percentile, log")
    opacity: float = Field(0.5, ge=0, le=1, description="a number from 0 to 1")
    smooth: bool = Field(False, description="true or false")
    sections_open: tuple[str, ...] = Field(("navigation", "attention"), description="a list of names")
    live: bool = Field(False, description="true or false")
    icc: bool = Field(False, description="true or false")

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_sentence(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            expected = cls.__pydantic_fields__[name].description  # type: ignore[attr-defined]  # pydantic adds it
            raise ConfigError(f"the setting {name} is {first['input']!r}; expected {expected}") from error


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_valid(name: str, value: Any) -> bool:
    """Return whether a setting of this name exists and can have this value."""
    if name not in {field.name for field in fields(Settings)}:
        return False
    try:
        Settings(**{name: value})
    except ConfigError:
        return False
    return True


@dataclass(frozen=True)
class LoadedSettings:
    """Settings, and a notice that names all entries that could not be read."""

    settings: Settings
    notice: Notice | None


@dataclass(frozen=True)
class ThroughputKey:
    """Conditions that seconds per patch depend on: model, device and network."""

    bundle_sha256: str
    device: str
    network: str

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ConfigError(f"the network is {self.network!r}; expected {' or '.join(NETWORKS)}")

    @property
    def text(self) -> str:
        """The key as it stands in the file."""
        return f"{self.bundle_sha256} {self.device} {self.network}"


class SettingsStore:
    """JSON file of resolutions, throughput and settings. Broken content is ignored, unknown content is preserved.

    Parameters
    ----------
    folder
        Folder of the file. The default is that of `FOLDER_VARIABLE`, or the user's configuration folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = (Path(folder) if folder is not None else default_folder()) / FILE

    # ------------------------------------------------------------ resolution

    def remember_mpp(self, fingerprint: str, mpp: float) -> None:
        """Store the resolution that the user gave for a slide, in µm per level-0 pixel.

        Raises
        ------
        ConfigError
            If `mpp` is not a positive number, or the file cannot be written.
        """
        if not _is_number(mpp) or mpp <= 0:
            raise ConfigError(f"microns per pixel is {mpp!r}; expected a positive number, such as 0.5")
        self._change("mpp", fingerprint, lambda _: float(mpp))

    def remembered_mpp(self, fingerprint: str) -> float | None:
        """Return the resolution that the user gave for a slide earlier, or None."""
        value = self._part("mpp").get(fingerprint)
        return float(value) if _is_number(value) and value > 0 else None

    # ------------------------------------------------------------ model

    def remember_model(self, folder: Path, model: str) -> None:
        """Store the model that the user chose for the slides of a folder: a bundle's folder, or a shipped name.

        An empty text states that the user chose none.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        self._change("models", str(folder), lambda _: model)

    def remembered_model(self, folder: Path) -> str | None:
        """Return the model that the user chose for the slides of a folder, or None."""
        value = self._part("models").get(str(folder))
        return value if isinstance(value, str) else None

    # ------------------------------------------------------------ reviewer

    def remember_reviewer(self, name: str) -> None:
        """Store the name under which the user gives verdicts.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        self._change("review", "reviewer", lambda _: name)

    def remembered_reviewer(self) -> str:
        """Return the name under which the user gave verdicts last; empty if none did."""
        value = self._part("review").get("reviewer")
        return value if isinstance(value, str) else ""

    def remember_blind(self, is_blind: bool) -> None:
        """Store whether the reviewer reads blind: answers are hidden until the verdict.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        self._change("review", "blind", lambda _: is_blind)

    def remembered_blind(self) -> bool:
        """Return whether the reviewer read blind last."""
        return self._part("review").get("blind") is True

    # ------------------------------------------------------------ pace

    def remember_pace(self, key: ThroughputKey, seconds: float, patches: int) -> None:
        """Add the wall seconds of a run to the last `RUNS` of its kind. A run without patches is ignored."""
        if patches < 1 or not _is_number(seconds) or seconds <= 0:
            return
        self._change("pace", key.text, lambda old: [*_runs(old), [float(seconds), int(patches)]][-RUNS:])

    def expected_seconds(self, key: ThroughputKey, patches: int) -> float | None:
        """Return the expected seconds for `patches`, or None before the first run of this kind.

        The estimate is the median of seconds per patch, weighted by the patches of each run. One run on a busy machine
        changes it little, and a run of four patches less than a run of a whole slide.
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
        """Return the settings. Unknown or broken entries keep their default and are named in a notice."""
        content, broken = self._read()
        stored = content.get("settings", {})
        if not isinstance(stored, dict):
            stored, broken = {}, True
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
        good = {name: value for name, value in values.items() if _is_valid(name, value)}
        bad = sorted(set(values) - set(good))
        if not broken and not bad:
            return LoadedSettings(Settings(**good), None)
        subject = f"the settings {', '.join(bad)} are" if bad else "it is"
        message = (
            f"{subject} unknown or broken in {self.path} and left at the default; save the settings to mend the file"
        )
        return LoadedSettings(Settings(**good), Notice(message, FILE))

    def save_settings(self, settings: Settings) -> None:
        """Store the settings."""
        with _WRITING:
            content, _ = self._read()
            self._write({**content, "settings": asdict(settings)})

    # ------------------------------------------------------------ the file

    def _part(self, name: str) -> Mapping[str, Any]:
        part = self._read()[0].get(name)
        return part if isinstance(part, dict) else {}

    def _change(self, part: str, key: str, change: Callable[[Any], Any]) -> None:
        """Read the file, change one entry and write it again. Another process can lose an entry, but not the file."""
        with _WRITING:
            content, _ = self._read()
            old = content.get(part)
            entries = old if isinstance(old, dict) else {}
            self._write({**content, part: {**entries, key: change(entries.get(key))}})

    def _read(self) -> tuple[dict[str, Any], bool]:
        """Return the content, and whether the file exists but is broken."""
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
        except (OSError, ValueError) as error:  # ValueError: a NaN that was written by hand
            raise ConfigError(
                f"{self.path} could not be written ({error}); set {FOLDER_VARIABLE} to a folder that you may write to"
            ) from error


def default_folder() -> Path:
    """Return the folder of `FOLDER_VARIABLE`, or the user's configuration folder of this program."""
    import platformdirs

    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else platformdirs.user_config_path("napari-lrmil", appauthor=False)


def _runs(stored: Any) -> list[list[float]]:
    """Return the valid (seconds, patches) pairs of the stored value."""
    if not isinstance(stored, list):
        return []
    return [
        run for run in stored if isinstance(run, list) and len(run) == 2 and all(_is_number(v) and v > 0 for v in run)
    ]
