"""Commands ``view`` and ``demo``, which open the napari window."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_lrmil.cli.console import BundleOption, MppOption, download_hub_bundles, print_result
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.user_folders import keep_settings_in_cache


def view(
    slides: Annotated[
        list[Path] | None,
        typer.Argument(
            help="slides, or links to places on slides; a folder of slides or a cohort table opens as a worklist"
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle",
            help="folder of a bundle, name of a shipped one (breast-idc, demo), or hf:owner/name; if not given: the "
            "model last chosen for the folder of the slide, or none for tissue",
        ),
    ] = None,
    mpp: MppOption = None,
) -> None:
    """Open slides in napari with the Analyse dock, or a folder of slides with the Worklist dock."""
    download_hub_bundles(bundle)
    from napari_lrmil.plugin.launch import open_viewer

    open_viewer(slides or [], bundle, mpp)


def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="folder for the phantom slide, the results and demo.png")
    ] = Path("demo"),
    headless: Annotated[bool, typer.Option("--headless", help="render off-screen to OUT/demo.png")] = False,
    slide: Annotated[Path | None, typer.Option(help="a slide of your own instead of the phantom")] = None,
    bundle: BundleOption = "demo",
) -> None:
    """Show the attention of the LR student and its HR teacher, on a phantom slide or on yours."""
    require_writable(folder)
    download_hub_bundles(bundle)
    if headless:
        keep_settings_in_cache()
    from napari_lrmil.plugin.launch import run_demo

    result = run_demo(folder, slide, bundle, headless)
    if result is not None:
        from napari_lrmil.core.cohort.predict_task import summarize_prediction

        prediction = result.prediction
        print_result(f"{prediction.path.name}: {summarize_prediction(prediction)} -> {result.folder}")
        print_result(f"picture -> {result.picture}")
