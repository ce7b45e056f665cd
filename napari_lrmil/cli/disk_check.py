"""Option ``--ignore-disk`` of ``features`` and ``train``, and the check that it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.core.formatting import format_count

if TYPE_CHECKING:
    from lrmil_training.config import TrainConfig
    from lrmil_training.data.features import FeatureRequest
    from napari_lrmil.core.cohort import SlideJob
    from napari_lrmil.core.features.layouts.foreign import FeatureFolder

IgnoreDiskOption = Annotated[
    bool, typer.Option("--ignore-disk", help="go on although the disk may not hold the features")
]


def require_feature_disk(
    folder: Path, jobs: Sequence[SlideJob], files: Sequence[Path], request: FeatureRequest
) -> None:
    """Check that a disk holds the features of the slides that have none yet.

    Raises
    ------
    ConfigError
        If it does not.
    """
    from napari_lrmil.core.features.disk_space import count_sample_patches, feature_bytes, require_disk_space
    from napari_lrmil.core.slides.slide import Slide

    missing = [job for job, file in zip(jobs, files, strict=True) if not file.exists()]
    counts = count_sample_patches(
        [partial(Slide, job.path, mpp=job.mpp) for job in missing], request.plan, request.tissue
    )
    if counts is None:
        return
    width: int = request.encoder.dim  # type: ignore[attr-defined]  # every encoder of a request has it
    slides = format_count(len(missing), "slide")
    basis = f"{slides} of {counts.lr:,.0f} patches, {width} numbers each; {_counted(counts.slides)}"
    require_disk_space(folder, feature_bytes(counts.lr, width, len(missing)), basis)


def require_conversion_disk(folder: Path, source: FeatureFolder, slides: Sequence[str], layout: str) -> None:
    """Check that a disk holds the features of these slides in another layout, by the sizes of a few of them.

    Raises
    ------
    ConfigError
        If it does not.
    """
    from napari_lrmil.core.errors import BagError
    from napari_lrmil.core.features.disk_space import SAMPLED_SLIDES, require_disk_space
    from napari_lrmil.core.features.layouts.writers import layout_bytes

    present = [name for name in slides if name in source.files]
    sizes = []
    for name in present[:: max(1, len(present) // SAMPLED_SLIDES)][:SAMPLED_SLIDES]:
        try:
            sizes.append(layout_bytes(layout, source.open(name).shape))
        except BagError:  # it is reported with its reason when it is converted
            continue
    if sizes:
        basis = f"{len(present)} slides in the layout {layout}; {_counted(len(sizes))}"
        require_disk_space(folder, len(present) * sum(sizes) / len(sizes), basis)


def require_training_disk(table: Path, folder: Path, config: TrainConfig, device: str) -> None:
    """Check that a disk holds the features, checkpoints and bundles of a training, less those that are there already.

    Raises
    ------
    ConfigError
        If it does not.
    LrmilError
        If the table cannot be used.
    """
    from lrmil_training.data.cohort import read_cohort
    from lrmil_training.estimate import EMBEDDING_WIDTH, WorkloadEstimate, estimate_run
    from napari_lrmil.core.features.disk_space import count_sample_patches, require_disk_space
    from napari_lrmil.core.user_settings import SettingsStore

    # Labels do not change sizes; whether they may be absent is the training's question.
    cohort = read_cohort(table, seed=config.seed, unlabelled=("any",))
    slides = len(cohort.slides)
    counts = count_sample_patches([row.open for row in cohort.slides], config.plan, config.tissue)
    if counts is None:
        return
    train_patches = counts.lr * len(cohort.of("train"))
    workload = WorkloadEstimate(counts.hr * slides, counts.lr * slides, train_patches, slides, counts.slides)
    target = config.features or folder
    present = sum(file.stat().st_size for file in target.rglob("*.h5"))
    needed = estimate_run(workload, config, device, SettingsStore()).size - present
    patches = f"{counts.hr:,.0f} HR and {counts.lr:,.0f} LR patches, {EMBEDDING_WIDTH:,} numbers each"
    basis = f"{format_count(slides, 'slide')} of {patches}; {_counted(counts.slides)}"
    require_disk_space(target, needed, basis)


def _counted(slides: int) -> str:
    return f"counted on {slides} slide{'s' if slides > 1 else ''}"
