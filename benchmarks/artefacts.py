"""Artefacts on phantoms: how much of each kind is found, how much other tissue is marked, and what the search costs.

    python benchmarks/artefacts.py --work WORK [--slides N] [--crops SLIDE…] [--data FOLDER] [--cohort FOLDER]
        [--patches FOLDER] [--write docs/how-to/artefacts.md]

Each phantom is painted once and then gets one artefact of each kind. "Found" is the share of the artefact's tissue that
is marked as an artefact of any kind, "other tissue marked" the share of the rest. CPU times are medians after a first
pass, relative to the tissue mask. Slides go to `WORK` and may be deleted. Real tissue has no outlines of artefacts:
what is found on crops that were chosen for their tissue counts as marked wrongly. Folds are marked, and never left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from real_tissue_table import put_between

from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.artefacts import STEP, Artefacts
from napari_lrmil.core.patching.tissue import Tissue, find_tissue
from napari_lrmil.core.phantom import LESION, NORMAL, PhantomSlide, write_slide
from napari_lrmil.core.phantom.artefact_paint import paint_blur, paint_bubble, paint_pen
from napari_lrmil.core.slides.slide import Slide

BEGIN, END = "<!-- written by benchmarks/artefacts.py --write -->", "<!-- end of what it writes -->"
SIZE, MPP, SEED, GLAS_MPP = (4096, 3072), 0.5, 300, 0.62
INKS = {
    "green": (0.25, 0.66, 0.40),
    "blue": (0.20, 0.36, 0.75),
    "black": (0.20, 0.20, 0.22),
    "red": (0.86, 0.18, 0.20),
    "yellow": (0.95, 0.85, 0.25),
    "violet": (0.45, 0.25, 0.60),
}
BLURS = (4.0, 8.0, 12.0)  # µm
RUNS = 5
PATCHES_STEP = 9  # of the many slides assembled from patches, each of these is searched
PLAN = PatchPlan(MPP, 2.0, 128, 128)
Painted = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def kinds(pixels: NDArray[np.uint8]) -> dict[str, Callable[[], Painted]]:
    """Return name -> painter of one artefact."""
    middle = 0.30 * SIZE[0] * MPP, 0.42 * SIZE[1] * MPP
    painters: dict[str, Callable[[], Painted]] = {
        f"pen, {name}": (lambda ink=ink: paint_pen(pixels, MPP, ink)) for name, ink in INKS.items()
    }
    painters["air bubble"] = lambda: paint_bubble(pixels, MPP, middle, 300.0)
    painters |= {
        f"blur, {sigma:g} µm": (lambda sigma=sigma: paint_blur(pixels, MPP, middle, 400.0, sigma)) for sigma in BLURS
    }
    return painters


def pyramid(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write pixels as a pyramid of four levels, each a mean of 2 x 2 pixels."""
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    tags = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in range(4):
            file.write(pixels, subfiletype=int(level > 0), **options, **(tags if level == 0 else {}))
            height, width = (n // 2 * 2 for n in pixels.shape[:2])
            halves = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
            pixels = halves.mean(axis=(1, 3)).astype(np.uint8)
    return path


def search(path: Path) -> tuple[Tissue, Artefacts]:
    """Return tissue and artefacts of a slide."""
    with Slide(path) as slide:
        tissue = find_tissue(slide, PLAN.lattice(slide.bounds, slide.mpp))
    artefacts = tissue.artefacts
    assert artefacts is not None
    return tissue, artefacts


def shares(tissue: Tissue, artefacts: Artefacts, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of the artefact's tissue that was found, and of the other tissue that was marked."""
    assert tissue.evidence is not None
    is_tissue = tissue.evidence.is_tissue[::STEP, ::STEP]
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int)
        for n, m in zip(is_tissue.shape, truth.shape, strict=True)
    )
    covered = truth[np.ix_(rows, columns)]
    mask = artefacts.any_kind
    marked = np.zeros_like(is_tissue) if mask is None else mask
    near = covered if not covered.any() else np.asarray(_grown(covered))
    marked_artefact = marked[is_tissue & covered]
    share = float(marked_artefact.mean()) if marked_artefact.size else float("nan")
    return share, float(marked[is_tissue & ~near].mean())


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask grown by 3 pixels: the margin of an artefact is neither found nor wrong."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, iterations=3))


def measure(work: Path, slides: int) -> Iterator[tuple[str, float, float, str]]:
    """Yield kind, share found, share of other tissue marked, and the kinds that were told, of each phantom."""
    work.mkdir(parents=True, exist_ok=True)
    for i in range(slides):
        phantom = PhantomSlide(f"phantom-{i}", LESION if i % 2 else NORMAL, SEED + i, SIZE)
        plain = work / f"{phantom.name}.tif"
        if not plain.exists():
            write_slide(work, phantom)
        with Slide(plain) as slide:
            pixels = slide.read_level(0, 0, 0, *SIZE)
        yield "none", *_row(plain, np.zeros(pixels.shape[:2], np.bool_))
        folded = PhantomSlide(f"fold-{i}", phantom.label, SEED + i, SIZE)
        yield "fold", *_row(write_slide(work, folded, variants=["fold"]), fold_truth(work / f"fold-{i}.tif", pixels))
        for name, paint in kinds(pixels).items():
            painted, truth = paint()
            yield name, *_row(pyramid(work / "painted.tif", painted), truth)


def fold_truth(path: Path, plain: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the fold's outline lies."""
    outline = json.loads(path.with_name(f"{path.stem}_artefacts.geojson").read_text())["features"][0]
    picture = Image.new("1", plain.shape[1::-1])
    ImageDraw.Draw(picture).polygon([tuple(p) for p in outline["geometry"]["coordinates"][0]], fill=1)
    return np.asarray(picture, np.bool_)


def _row(path: Path, truth: NDArray[np.bool_]) -> tuple[float, float, str]:
    tissue, artefacts = search(path)
    return *shares(tissue, artefacts, truth), ", ".join(artefacts.shares)


def costs(path: Path) -> tuple[float, float]:
    """Return median CPU-milliseconds of the tissue mask, with what it keeps, and of the search for artefacts."""
    times = []
    for _ in range(RUNS + 1):
        with Slide(path) as slide:
            lattice = PLAN.lattice(slide.bounds, slide.mpp)
            began = time.process_time()
            tissue = find_tissue(slide, lattice)
            middle = time.process_time()
            _ = tissue.artefacts
            times.append((middle - began, time.process_time() - middle))
    first, second = 1e3 * np.median(times[1:], axis=0)
    return float(first), float(second)


def real_tissue(
    work: Path, data: Path, cohort: Path | None, patches: Path | None
) -> Iterator[tuple[str, Sequence[Path]]]:
    """Yield name and slides of each set of real crops: regions of slides, fields, and slides assembled from both."""
    slides = data / "slides"
    yield "CMU-1, skin: SVS, pyramid, DICOM", [*slides.glob("CMU-1*"), *(slides / "derived").glob("CMU-1*")]
    yield "MoNuSeg, breast: one field, two files", sorted((slides / "derived").glob("monuseg*"))
    yield (
        "GlaS, colon: fields of 480 x 320 µm",
        [_as_slide(work, path) for path in sorted((data / "patches/glas").rglob("*.png"))],
    )
    if cohort is not None:
        yield "GlaS, colon: slides assembled from fields", sorted(cohort.glob("*.tif"))
    if patches is not None:
        yield "IDC, breast: slides assembled from patches of 400 µm", sorted(patches.glob("*.tif"))[::PATCHES_STEP]


def _as_slide(work: Path, image: Path) -> Path:
    """Write a field of GlaS as a slide."""
    path = work / f"{image.stem}.tif"
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    with Image.open(image) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tifffile.imwrite(path, pixels, resolution=(1e4 / GLAS_MPP,) * 2, resolutionunit="CENTIMETER", **options)
    return path


def print_real_table(sets: Iterable[tuple[str, Sequence[Path]]]) -> str:
    """Return a row for each set: slides with any artefact, tissue marked, lesions marked, and the kinds."""
    lines = [
        "| real tissue | told | tissue marked, mean | most on one | lesions marked, mean | most on one | kinds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, paths in sets:
        searches = [(path, *search(path)) for path in paths]
        marked = [100 * sum(artefacts.shares.values()) for _, _, artefacts in searches]
        lesions = [100 * share for one in searches if (share := lesion_share(*one)) is not None]
        counts = Counter(kind for _, _, artefacts in searches for kind in artefacts.shares)
        text = ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "–"
        with_artefacts = f"{sum(bool(artefacts.shares) for _, _, artefacts in searches)} of {len(searches)}"
        of_lesions = f"{np.mean(lesions):.2f} % | {max(lesions):.1f} %" if lesions else "– | –"
        lines.append(
            f"| {name} | {with_artefacts} | {np.mean(marked):.2f} % | {max(marked):.1f} % | {of_lesions} | {text} |"
        )
    return "\n".join(lines)


def lesion_share(path: Path, tissue: Tissue, artefacts: Artefacts) -> float | None:
    """Return the share of the tissue in lesion outlines that is marked; None without outlines beside the slide."""
    outlines = path.with_name(f"{path.stem}_lesions.geojson")
    if not outlines.exists() or not json.loads(outlines.read_text())["features"]:
        return None
    assert tissue.evidence is not None
    is_tissue = tissue.evidence.is_tissue[::STEP, ::STEP]
    with Slide(path) as slide:
        size = slide.bounds.width, slide.bounds.height
    picture = Image.new("1", is_tissue.shape[::-1])
    scale = picture.width / size[0], picture.height / size[1]
    for feature in json.loads(outlines.read_text())["features"]:
        ring = [(x * scale[0], y * scale[1]) for x, y in feature["geometry"]["coordinates"][0]]
        ImageDraw.Draw(picture).polygon(ring, fill=1)
    lesion = np.asarray(picture, np.bool_) & is_tissue
    mask = artefacts.any_kind
    return float(mask[lesion].mean()) if mask is not None and lesion.any() else 0.0


def print_table(rows: Sequence[tuple[str, float, float, str]]) -> str:
    """Return a row for each kind: slides on which it was told, mean share found, mean share of other tissue marked."""
    lines = ["| artefact | told | found | other tissue marked |", "|---|---|---|---|"]
    for name in dict.fromkeys(row[0] for row in rows):
        of_kind = [row for row in rows if row[0] == name]
        count = sum(bool(row[3]) for row in of_kind)
        marked = [row[1] for row in of_kind if not np.isnan(row[1])]
        text = f"{100 * np.mean(marked):.0f} %" if marked else "–"
        lines.append(
            f"| {name} | {count} of {len(of_kind)} | {text} | {100 * np.mean([r[2] for r in of_kind]):.2f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, required=True, help="folder for slides")
    p.add_argument("--slides", type=int, default=6)
    p.add_argument("--crops", type=Path, nargs="*", default=[], help="slides of real tissue, which are only searched")
    p.add_argument("--data", type=Path, help="folder with slides and patches of real tissue")
    p.add_argument("--cohort", type=Path, help="folder of slides that benchmarks/real_tissue_cohorts.py painted")
    p.add_argument("--patches", type=Path, help="folder of slides that benchmarks/breast_idc.py painted")
    p.add_argument("--write", type=Path, help="put the table into this page")
    args = p.parse_args()
    table = print_table(list(measure(args.work, args.slides)))
    lines = [table, ""]
    for path in [args.work / "phantom-0.tif", args.work / "fold-0.tif", *args.crops]:
        tissue, search_ms = costs(path)
        kinds_text = (
            ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in search(path)[1].shares.items()) or "none"
        )
        lines.append(f"- {path.name}: mask {tissue:.1f} CPU-ms, artefacts {search_ms:.1f} CPU-ms; told: {kinds_text}")
    if args.data is not None:
        lines += ["", print_real_table(real_tissue(args.work, args.data, args.cohort, args.patches))]
    text = "\n".join(lines)
    if args.write is None:
        print(text)
    else:
        put_between(args.write, BEGIN, END, f"\n{text}\n")


if __name__ == "__main__":
    main()
