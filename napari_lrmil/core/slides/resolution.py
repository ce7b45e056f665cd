"""Resolution of a slide: its sources in order of precedence, and warnings about implausible values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from napari_lrmil.core.geometry import MPP_TOLERANCE, Mpp

PLAUSIBLE_MPP = (0.02, 100.0)  # of a value that the user gives
PLAUSIBLE_STATED_MPP = (0.02, 30.0)  # of a file; print is coarser: 600 dpi is 42 µm, 300 dpi 85 µm, 72 dpi 353 µm
PRINT_DPI = (72, 600)
POWER_TIMES_MPP = 10.0  # a 20x objective is nominally 0.5 µm per pixel
NOMINAL_DEVIATION = 0.15  # relative distance from 0.25, 0.5, 1 … above which a warning is due
REMEMBERED = "remembered"  # source of a resolution that the user gave earlier
OME_SIZE = ("ome.physical-size-x", "ome.physical-size-y")  # properties, in µm, of the readers of OME files
_UM_PER_UNIT = {
    **dict.fromkeys(("µm", "um", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 1e4),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e6),
    **dict.fromkeys(("in", "inch", "inches", '"'), 25_400.0),
    **dict.fromkeys(("å", "angstrom", "angstroms"), 1e-4),
    "pm": 1e-6,
    "fm": 1e-9,
    "dm": 1e5,
    "km": 1e9,
    "thou": 25.4,
    "li": 25_400 / 12,
    "ft": 304_800.0,
}  # in lower case; the units of OME, ImageJ and TIFF
_NUMBER = r"([-+]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][-+]?[0-9]+)?)"
_COMMENT = re.compile(
    rf"(?:MPP|microns?[ _]?per[ _]?pixel)(?:[ _-]?([XY]))?\s*[=:]\s*{_NUMBER}",
    re.IGNORECASE,
)


def find_mpp(
    properties: Mapping[str, str],
    *,
    override: float | None = None,
    remembered: Callable[[], float | None] | None = None,
) -> Mpp | None:
    """Return the resolution from the first source that states it, or None.

    Sources in order: `override`, OME metadata, ImageJ, OpenSlide, TIFF tags, vendor comment, objective power,
    `remembered`. A file's value is ignored if it is a print resolution or otherwise not plausible.

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
        if pair is not None and _is_plausible(pair):
            return Mpp(*pair, source)
    earlier = remembered() if remembered is not None else None
    return None if earlier is None else Mpp(earlier, earlier, REMEMBERED)


def why_not_believed(properties: Mapping[str, str]) -> str | None:
    """Return a clause on the first resolution that a file states, if it is none of a scan; None if it states none."""
    stated = [(source, pair) for source, find in _SOURCES if (pair := find(properties)) is not None]
    if not stated or any(_is_plausible(pair) for _, pair in stated):
        return None
    source, (x, y) = stated[0]
    dpi, low, high = 25_400 / x, *PRINT_DPI
    if low * 0.99 <= dpi <= high * 1.01:
        return f"{source} states {x:.4g} µm, which is {dpi:.0f} dpi: the resolution of print, not of a scan"
    return f"{source} states {x:.4g} x {y:.4g} µm, which is not plausible for a scan"


def unit_in_um(name: str) -> float | None:
    """Return the µm in a unit of length, or None if the unit is unknown. Every usual spelling of µ is understood."""
    text = name.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("Âµ", "µ").replace("Î¼", "µ")
    return _UM_PER_UNIT.get(text.replace("μ", "µ").lower().replace("μ", "µ"))


def _is_plausible(pair: tuple[float, float]) -> bool:
    low, high = PLAUSIBLE_STATED_MPP
    return all(low <= value <= high for value in pair)


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
            f"{mpp.mean:.4g} µm per pixel ({mpp.source}) differs by more than 15 % from the nearest standard value, "
            f"{nominal:g}; check --mpp"
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


def _from_ome(properties: Mapping[str, str]) -> tuple[float, float] | None:
    return _pair(*(number(properties.get(name)) for name in OME_SIZE))


def _from_imagej(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the pixel size of an ImageJ file. Its unit is text, and the TIFF tags count pixels per that unit."""
    text = properties.get("tiff.ImageDescription", "")
    unit = re.search(r"^unit=(.*)$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    return None if unit is None else _from_density(properties, unit_in_um(unit[1]))


def _from_openslide(properties: Mapping[str, str]) -> tuple[float, float] | None:
    return _pair(number(properties.get("openslide.mpp-x")), number(properties.get("openslide.mpp-y")))


def _from_tiff(properties: Mapping[str, str]) -> tuple[float, float] | None:
    return _from_density(properties, unit_in_um(properties.get("tiff.ResolutionUnit", "")))


def _from_density(properties: Mapping[str, str], unit: float | None) -> tuple[float, float] | None:
    """Return the pixel size if the TIFF tags count pixels per `unit` µm."""
    x, y = (number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    return _pair(unit / x, unit / y) if unit and x and y else None


def _from_comment(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the first pixel size in a comment, from one value for both axes or from one each."""
    text = "\n".join(properties.get(k, "") for k in ("openslide.comment", "tiff.ImageDescription"))
    sizes: dict[str, float | None] = {}
    for match in _COMMENT.finditer(text):
        sizes.setdefault((match[1] or "").upper(), number(match[2]))
    both = sizes.get("")
    return _pair(both, both) or _pair(sizes.get("X"), sizes.get("Y"))


def _from_power(properties: Mapping[str, str]) -> tuple[float, float] | None:
    power = number(properties.get("openslide.objective-power"))
    return (POWER_TIMES_MPP / power, POWER_TIMES_MPP / power) if power else None


_SOURCES: tuple[tuple[str, Callable[[Mapping[str, str]], tuple[float, float] | None]], ...] = (
    ("OME metadata", _from_ome),
    ("ImageJ", _from_imagej),
    ("openslide", _from_openslide),
    ("tiff resolution", _from_tiff),
    ("vendor comment", _from_comment),
    ("objective power", _from_power),
)


def _pair(x: float | None, y: float | None) -> tuple[float, float] | None:
    return (x, y) if x and y else None


def number(text: str | None) -> float | None:
    """Return a finite number, or None. Exponents and a decimal comma are accepted, as some scanners write them."""
    text = (text or "").strip()
    if "," in text and "." in text:  # the later of the two is the decimal sign: 1,234.5 or 1.234,5
        text = text.replace("," if text.rindex(",") < text.rindex(".") else ".", "")
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
