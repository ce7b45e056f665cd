"""A cohort of phantom slides that many tests read, and parts of it for tests that need a folder of their own."""

from __future__ import annotations

import csv
import shutil
from itertools import zip_longest
from pathlib import Path

from napari_lrmil.core.phantom import LESION, NORMAL, PhantomSlide, make_cohort, write_slide
from napari_lrmil.core.phantom.artefact_paint import paint_pen
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import write_tiff

SIZE_PX = (1024, 768)
SPLITS = (("train", 8, 1), ("val", 4, 2), ("test", 4, 3))  # name, slides, seed


def paint_cohort(folder: Path) -> None:
    """Paint sixteen slides of 512 x 384 µm, half of each split with lesions, and write their table, ``cohort.csv``."""
    for split, slides, seed in SPLITS:
        list(make_cohort(folder, slides, SIZE_PX, seed, split=split))


def paint_inked(folder: Path) -> Path:
    """Paint a slide of normal tissue, 1024 x 768 µm, with green ink on its tissue; return its file."""
    path = write_slide(folder, PhantomSlide("plain", NORMAL, 300, (2048, 1536)))
    with Slide(path) as slide:
        pixels, _ = paint_pen(slide.read_level(0, 0, 0, slide.width, slide.height), 0.5, (0.25, 0.66, 0.40))
    return write_tiff(folder / "inked.tif", pixels, (1.0, 4.0), mpp=(0.5, 0.5))


def copy_cohort(table: Path, folder: Path, **slides: int) -> Path:
    """Copy that many slides of each split, of both classes alike, into a folder; return the path of their table."""
    folder.mkdir(parents=True, exist_ok=True)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for split, count in slides.items() for row in _of_both_classes(rows, split)[:count]]
    for row in chosen:
        for file in table.parent.glob(f"{Path(row['slide']).stem}*"):  # with its outlines of lesions
            shutil.copy2(file, folder)
    with (folder / table.name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row in chosen)  # in the table's order
    return folder / table.name


def _of_both_classes(rows: list[dict[str, str]], split: str) -> list[dict[str, str]]:
    """Return the rows of a split, classes in turn."""
    own = [row for row in rows if row["split"] == split]
    by_class = [[row for row in own if row["label"] == label] for label in (NORMAL, LESION)]
    return [row for pair in zip_longest(*by_class) for row in pair if row is not None]
