"""Resolution of a slide from its properties: units, spellings of numbers, and print resolutions that are no scan's."""

from __future__ import annotations

import pytest

from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.slides.resolution import find_mpp, number, unit_in_um, why_not_believed


def tags(density: str, unit: str = "none", **more: str) -> dict[str, str]:
    return {"tiff.XResolution": density, "tiff.YResolution": density, "tiff.ResolutionUnit": unit, **more}


@pytest.mark.parametrize(
    ("text", "value"),
    [("2.5E-1", 0.25), ("2,5e-1", 0.25), (" 0,2508 ", 0.2508), ("1,234.5", 1234.5), ("1.234,5", 1234.5), ("4e4", 4e4)],
)
def test_numbers_with_exponents_and_decimal_commas_are_read(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value)


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600])
def test_print_resolutions_are_never_a_scans(dpi: float) -> None:
    mpp = f"{25_400 / dpi:.6f}"
    for properties in (
        tags(str(dpi), "inch"),
        tags(f"{dpi / 2.54:.6f}", "centimeter"),
        {"openslide.mpp-x": mpp, "openslide.mpp-y": mpp},
        {"openslide.comment": f"MPP = {mpp}"},
        {"ome.physical-size-x": mpp, "ome.physical-size-y": mpp},
        tags(str(dpi), **{"tiff.ImageDescription": "ImageJ=1.54f\nunit=inch\n"}),
    ):
        assert find_mpp(properties) is None
        assert f"{dpi} dpi" in str(why_not_believed(properties))
    assert why_not_believed({}) is None and why_not_believed({"openslide.comment": "MPP = 0.5"}) is None


@pytest.mark.parametrize(
    ("unit", "per_unit"),
    [
        ("micron", 4),
        ("µm", 4),
        ("\\u00B5m", 4),
        ("um", 4),
        ("nm", 0.004),
        ("mm", 4000),
        ("cm", 40_000),
        ("inch", 101_600),
    ],
)
def test_imagejs_unit_is_the_one_of_its_text(unit: str, per_unit: float) -> None:
    mpp = find_mpp(tags(str(per_unit), **{"tiff.ImageDescription": f"ImageJ=1.53c\nunit={unit}\nloop=false\n"}))
    assert mpp is not None and mpp.source == "ImageJ" and mpp.x == mpp.y == pytest.approx(0.25)


@pytest.mark.parametrize("description", ["ImageJ=1.53c\nunit=pixel\n", "unit=micron", "ImageJ=1.53c\n"])
def test_a_density_without_a_unit_is_no_resolution(description: str) -> None:
    assert find_mpp(tags("2", **{"tiff.ImageDescription": description})) is None


@pytest.mark.parametrize(
    "comment",
    ["MPP = 0,25", "MPP-X=0.25;MPP-Y=0.25", "MPP_X: 2.5e-1\nMPP_Y: 2.5E-1", "mppx=.25 mppy=.25", "MPP = 250E-3|x"],
)
def test_vendor_comments_with_commas_exponents_and_one_value_per_axis(comment: str) -> None:
    assert find_mpp({"openslide.comment": comment}) == Mpp(0.25, 0.25, "vendor comment")


def test_the_size_of_the_ome_xml_is_believed_above_tags() -> None:
    size = {"ome.physical-size-x": "0.25", "ome.physical-size-y": "0.5"}
    assert find_mpp({**size, "openslide.mpp-x": "0.4", "openslide.mpp-y": "0.4"}) == Mpp(0.25, 0.5, "OME metadata")


@pytest.mark.parametrize(
    ("unit", "um"),
    [("µm", 1), ("μm", 1), ("Âµm", 1), ("nm", 1e-3), ("mm", 1e3), ("in", 25_400), ("Å", 1e-4), ("m", 1e6)],
)
def test_units_of_length_in_every_spelling(unit: str, um: float) -> None:
    assert unit_in_um(unit) == pytest.approx(um)
    assert unit_in_um("pixel") is None and unit_in_um("reference frame") is None
