"""Resolution of a slide: its sources in order of precedence, and warnings about implausible values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from napari_lrmil.core.geometry import MPP_TOLERANCE, Mpp

PLAUSIBLE_MPP = (0.02, 100.0)
PLAUSIBLE_TIFF_MPP = (0.02, 30.0)  # coarser TIFF tags describe print (300 dpi is 85 µm, 72 dpi 353 µm), not a scan
POWER_TIMES_MPP = 10.0  # a 20x objective is nominally 0.5 µm per pixel
NOMINAL_DEVIATION = 0.15  # relative distance from 0.25, 0.5, 1 … above which a warning is due
REMEMBERED = "remembered"  # source of a resolution that the user gave earlier
UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}


def find_mpp(
    properties: Mapping[str, str],
    *,
    override: float | None = None,
    remembered: Callable[[], float | None] | None = None,
) -> Mpp | None:
    """Return the resolution from the first source that states it, or None.

    Sources in order: `override`, OpenSlide, TIFF tags, vendor comment, objective power, `remembered`.

    Parameters
    ----------
    properties
        OpenSlide's properties of the slide.
    override
        µm per pixel from the caller.
    remembered
        Returns what the user gave for this slide earlier. It is called only if all other sources are silent.
    """
    if override is not None:
        return Mpp(override, override, "override")
    for source, find in _SOURCES:
        pair = find(properties)
        low, high = PLAUSIBLE_TIFF_MPP if source == "tiff resolution" else PLAUSIBLE_MPP
        if pair is not None and all(low <= v <= high for v in pair):
            return Mpp(*pair, source)
    earlier = remembered() if remembered is not None else None
    return None if earlier is None else Mpp(earlier, earlier, REMEMBERED)


def mpp_warnings(mpp: Mpp, stated: Mpp | None = None) -> tuple[str, ...]:
    """Return warnings about the resolution in use, `mpp`; `stated` is the resolution of the file."""
    warnings = []
    if stated is not None and abs(mpp.mean / stated.mean - 1) > MPP_TOLERANCE:
        warnings.append(
            f"the file says {stated.mean:.4g} µm per pixel ({stated.source}), and {mpp.mean:.4g} was given and is "
            "used; leave --mpp out unless the file is wrong"
        )
    nominal = 0.5 * 2.0 ** round(math.log2(mpp.mean / 0.5))
    if abs(mpp.mean / nominal - 1) > NOMINAL_DEVIATION:
        warnings.append(
            f"{mpp.mean:.4g} µm per pixel ({mpp.source}) is more than 15 % from the nominal {nominal:g}; check --mpp"
        )
    if mpp.source == "objective power":
        warnings.append(
            f"resolution taken from the objective power ({mpp.mean:g} µm per pixel); pass --mpp if you know it"
        )
    if mpp.source == REMEMBERED:
        warnings.append(
            f"resolution as you gave it earlier for this slide ({mpp.mean:g} µm per pixel); --mpp changes it"
        )
    return tuple(warnings)


def _from_openslide(properties: Mapping[str, str]) -> tuple[float, float] | None:
    return _pair(number(properties.get("openslide.mpp-x")), number(properties.get("openslide.mpp-y")))


def _from_tiff(properties: Mapping[str, str]) -> tuple[float, float] | None:
    unit = UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", "").lower())
    per_unit = [number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    if unit is None or not all(per_unit):
        return None
    return _pair(*(unit / v if v else None for v in per_unit))


def _from_comment(properties: Mapping[str, str]) -> tuple[float, float] | None:
    text = "\n".join(properties.get(k, "") for k in ("openslide.comment", "tiff.ImageDescription"))
    match = re.search(r"(?:MPP|microns?[ _]?per[ _]?pixel)\s*[=:]\s*([0-9]*\.?[0-9]+)", text, re.IGNORECASE)
    return _pair(float(match[1]), float(match[1])) if match else None


def _from_power(properties: Mapping[str, str]) -> tuple[float, float] | None:
    power = number(properties.get("openslide.objective-power"))
    return (POWER_TIMES_MPP / power, POWER_TIMES_MPP / power) if power else None


_SOURCES: tuple[tuple[str, Callable[[Mapping[str, str]], tuple[float, float] | None]], ...] = (
    ("openslide", _from_openslide),
    ("tiff resolution", _from_tiff),
    ("vendor comment", _from_comment),
    ("objective power", _from_power),
)


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    return (x, y) if x and y else None


def number(text: str | None) -> float | None:
    """Return a finite number, or None. A decimal comma is accepted, as some scanners write one."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
