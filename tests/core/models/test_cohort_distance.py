"""File of the training slides' embeddings in a bundle: size, values, and refusals in a sentence."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.cohort_distance import (
    EMBEDDINGS,
    CohortDistance,
    EmbeddingStatistics,
    read_embedding_statistics,
    write_embedding_statistics,
)
from support.networks import untrained_bundle


def statistics(dim: int, k: int = 2) -> EmbeddingStatistics:
    """Return statistics with the first axes as directions."""
    return EmbeddingStatistics(
        mean=np.ones(dim),
        directions=np.eye(dim)[:k],
        variances=np.array([4.0, 1.0, *np.ones(k - 2)])[:k],
        scales=np.array([2.0, 8.0]),
        levels=np.array([0.0, 0.5, 0.99, 0.999]),
        distances=np.array([0.0, 1.0, 3.0, 4.0]),
        counts=np.array([30, 40]),
    )


def test_an_example_by_hand() -> None:
    """Offset (4, 2, 2, 2): 16/4 + 4/1 = 8 in the directions, 4 + 4 = 8 outside; sqrt((8/2 + 8/8) / 2)."""
    result = statistics(4).measure(np.array([5.0, 3.0, 3.0, 3.0]))
    assert result.distance == pytest.approx(np.sqrt(2.5))
    assert result.quantile == pytest.approx(0.5 + 0.49 * (np.sqrt(2.5) - 1) / 2)
    assert (result.slides, result.is_outside, result.warning) == (40, False, None)
    assert result.text == "farther from the training slides than 64 % of 40 slides of their kind"


def test_a_slide_beyond_the_table_is_outside() -> None:
    result = statistics(4).measure(np.full(4, 100.0))
    assert result.quantile == 1 and result.is_outside
    assert result.warning is not None and "than 99.9 % of 40 slides of their kind" in result.warning
    assert CohortDistance(2.0, 0.99, 9).warning is None
    assert "than 64 % of slides of their kind" in CohortDistance(1.0, 0.64, 100).text, "many slides: the share is exact"
    assert "than 99.4 % of" in str(CohortDistance(2.0, 0.994, 9).warning)


def test_the_file_is_small_and_holds_the_values(tmp_path: Path) -> None:
    full = statistics(1280, 16)
    write_embedding_statistics(tmp_path, full, "x")
    assert (tmp_path / EMBEDDINGS).stat().st_size < 60_000
    read = read_embedding_statistics(tmp_path, "x", 1280)
    assert read is not None
    for name in full.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(read, name), getattr(full, name))
    write_embedding_statistics(tmp_path, None, "x")
    assert not (tmp_path / EMBEDDINGS).exists() and read_embedding_statistics(tmp_path, "x", 1280) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": np.ones(5)}, r"mean has shape \(5,\), expected \(4,\)"),
        ({"directions": np.full((2, 4), np.nan)}, "directions has values that are not finite"),
        ({"variances": np.array([1.0, 0.0])}, "a variance is 0 or below"),
        ({"scales": np.array([-1.0, 1.0])}, "a variance is 0 or below"),
        ({"distances": np.array([0.0, 2.0, 1.0, 3.0])}, "the quantiles do not rise"),
        ({"levels": np.array([0.0, 0.5, 0.5, 3.0])}, "the quantiles do not rise"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, change: dict[str, np.ndarray], said: str) -> None:
    write_embedding_statistics(tmp_path, replace(statistics(4), **change), "x")
    with pytest.raises(BundleError, match=f"{EMBEDDINGS} cannot be read .{said}.; copy the bundle again"):
        read_embedding_statistics(tmp_path, "x", 4)


def test_files_that_are_damaged_or_of_another_model_are_refused(tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "b", teacher=False)
    write_embedding_statistics(bundle.path, statistics(bundle.card.student.dim), bundle.sha256)
    assert Bundle(bundle.path).embedding_statistics is not None
    other = Path(shutil.copytree(bundle.path, tmp_path / "other"))
    write_embedding_statistics(other, statistics(bundle.card.student.dim), "of another")
    with pytest.raises(BundleError, match=f"{EMBEDDINGS} is of another model; copy the whole bundle again"):
        _ = Bundle(other).embedding_statistics
    content = (bundle.path / EMBEDDINGS).read_bytes()
    for damaged in (b"", b"no tensors", content[:-20], content.replace(b'"counts"', b'"number"')):
        (bundle.path / EMBEDDINGS).write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{EMBEDDINGS} cannot be read"):
            _ = Bundle(bundle.path).embedding_statistics
