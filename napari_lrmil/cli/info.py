"""The command ``info``: facts of a slide."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from napari_lrmil.cli.console import MppOption, SlideArgument, out, print_result
from napari_lrmil.core.text_escapes import printable


def info(
    slide: SlideArgument,
    mpp: MppOption = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the facts of a slide: vendor, levels, resolution and its source, bounds, ICC profile, associated images."""
    from napari_lrmil.core.slides.slide import Slide
    from napari_lrmil.core.user_settings import SettingsStore

    # A resolution that the user once gave in the window holds here too.
    with Slide(slide, mpp=mpp, remembered=SettingsStore().remembered_mpp) as opened:
        facts = slide_facts(opened)
    if json:
        out.print_json(data=facts)
        return
    for key, value in facts.items():
        text = ("; ".join(map(str, value)) or "none") if isinstance(value, list) else value
        print_result(f"{key:12} {'not known' if text is None else text}")


def slide_facts(slide: Any) -> dict[str, Any]:
    """Return the facts that ``info`` prints, ready for JSON."""
    mpp = slide.mpp if slide.has_mpp else None
    return {
        "slide": printable(slide.path.name),
        "vendor": slide.vendor,
        "size": f"{slide.width} x {slide.height} px",
        "mpp": [mpp.x, mpp.y] if mpp else None,
        "mpp source": mpp.source if mpp else None,
        "objective": slide.objective_power,
        "levels": [
            f"{level.width} x {level.height}"
            + (f" at {level.mpp(mpp):.4g} µm" if mpp else f" ({level.downsample:.4g} times)")
            for level in slide.levels
        ],
        "bounds": [slide.bounds.x, slide.bounds.y, slide.bounds.width, slide.bounds.height],
        "icc profile": bool(slide.properties.get("openslide.icc-size")),
        "associated": list(slide.associated),
        "fingerprint": slide.fingerprint,
        "warnings": list(slide.warnings),
    }
