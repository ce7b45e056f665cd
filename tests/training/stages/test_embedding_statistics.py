"""Distance from the training slides: an example by hand, held-out quantiles, and phantoms of another stain."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lrmil_training.data.cohort import read_cohort
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.stages import embedding_statistics
from lrmil_training.stages.embedding_statistics import (
    LEVELS,
    distance_quantiles,
    fit_embedding_statistics,
    measure_embeddings,
)
from napari_lrmil.core.events import Finished, Notice
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.cohort_distance import EMBEDDINGS, write_embedding_statistics
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.phantom import NORMAL, PhantomLook, PhantomSlide, write_slide
from napari_lrmil.core.results.cohort_tables import write_predictions_table
from napari_lrmil.core.results.writer import build_prediction_file
from napari_lrmil.core.slides.slide import Slide
from support.trained import Trained

RNG_SEED = 3


def cloud(n: int, dim: int = 40, seed: int = RNG_SEED) -> np.ndarray:
    """Return embeddings that spread along three directions, and a little everywhere."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0][:3]
    spread = rng.standard_normal((n, 3)) * (4.0, 2.0, 1.0)
    return np.asarray(5 + spread @ axes + 0.1 * rng.standard_normal((n, dim)))


def each(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_squared_parts_are_those_of_the_covariance() -> None:
    """With all directions kept they are the Mahalanobis distance of the covariance, shrunken by Ledoit and Wolf."""
    from sklearn.covariance import LedoitWolf

    train = cloud(60, dim=6)
    fitted = fit_embedding_statistics(train, each(60), cloud(20, dim=6, seed=4))
    assert fitted is not None and fitted.variances.shape == (6,)
    point = cloud(1, dim=6, seed=9)
    reference = LedoitWolf().fit((train - train.mean(axis=0)) @ fitted.directions.T)
    covariance = np.cov(train.T)
    shrunken = (1 - reference.shrinkage_) * covariance + reference.shrinkage_ * np.trace(covariance) / 6 * np.eye(6)
    offset = (point - train.mean(axis=0))[0]
    squares = fitted.squared_parts(point)[0]
    assert squares[0] == pytest.approx(offset @ np.linalg.solve(shrunken, offset), rel=0.01)
    assert squares[1] == pytest.approx(0, abs=1e-3)


def test_the_remainder_is_what_the_directions_leave_out() -> None:
    fitted = fit_embedding_statistics(cloud(60), each(60), cloud(20, seed=4))
    assert fitted is not None
    outward = np.linalg.svd(fitted.directions)[2][-1]  # orthogonal to all directions
    squares = fitted.squared_parts((fitted.mean + 3 * outward)[None])[0]
    assert squares == pytest.approx([0, 9], abs=1e-2)
    expected = np.sqrt((squares / fitted.scales).mean())
    assert fitted.measure(fitted.mean + 3 * outward).distance == pytest.approx(expected)


def test_quantiles_are_those_of_slides_that_the_fit_has_not_seen() -> None:
    """New slides of the same kind are spread evenly over the quantiles; those that were fitted are too near."""
    fitted = fit_embedding_statistics(cloud(80), each(80), cloud(40, seed=4))
    assert fitted is not None and fitted.counts.tolist() == [80, 120]
    new = np.array([fitted.measure(x).quantile for x in cloud(400, seed=11)])
    assert np.quantile(new, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.08)
    assert (new > 0.99).mean() < 0.03
    own = np.array([fitted.measure(x).quantile for x in cloud(80)])
    assert own.mean() < new.mean() - 0.05
    far = fitted.measure(cloud(1, seed=5)[0] + 2.0)
    assert far.is_outside and far.warning is not None and "lies outside the training slides" in far.warning


def test_slides_of_a_patient_are_held_out_together() -> None:
    """Two equal slides of each patient: one would betray the other, and unseen slides would seem far."""
    half = cloud(40)
    doubled = np.repeat(half, 2, axis=0)
    together = fit_embedding_statistics(doubled, [p for p in each(40) for _ in (0, 1)], np.empty((0, 40)))
    apart = fit_embedding_statistics(doubled, each(80), np.empty((0, 40)))
    assert together is not None and apart is not None
    assert together.scales[1] > 1.5 * apart.scales[1]


def test_the_table_of_quantiles_by_hand() -> None:
    """Of 199 distances the next lies below the i-th with probability i / 200; beyond them the log-normal tail."""
    table = distance_quantiles(np.arange(1.0, 200.0))
    assert table[LEVELS == 0.5] == pytest.approx([100.0])
    assert table[LEVELS == 0.99] == pytest.approx([198.0])
    assert table[LEVELS == 0.995] == pytest.approx([199.0])
    few = distance_quantiles(np.array([1.0, 2.0, 4.0]))
    logs = np.log([1.0, 2.0, 4.0])
    # Student's t of 2 degrees of freedom has the 99 % quantile 6.9646.
    expected = np.exp(logs.mean() + 6.9646 * logs.std(ddof=1) * np.sqrt(4 / 3))
    assert few[LEVELS == 0.99] == pytest.approx([expected], rel=1e-4)
    assert few[LEVELS == 0.25] == pytest.approx([1.0]) and (np.diff(few) >= 0).all()


def test_too_few_slides_or_patients_have_no_statistics() -> None:
    nothing = np.empty((0, 40))
    assert fit_embedding_statistics(cloud(9), each(9), nothing) is None
    assert fit_embedding_statistics(cloud(12), [f"p{i % 4}" for i in range(12)], nothing) is None
    assert fit_embedding_statistics(np.ones((12, 40)), each(12), nothing) is None
    assert fit_embedding_statistics(cloud(10), each(10), nothing) is not None


def test_a_run_measures_its_student_on_training_and_validation_slides(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of eight training slides is too small; if it were enough, the slides are those of its own features."""
    assert not (trained.run / "bundle" / EMBEDDINGS).exists()
    monkeypatch.setattr(embedding_statistics, "MIN_SLIDES", 8)
    cohort = read_cohort(trained.cohort)
    folder = min(path.parent for path in trained.run.glob("features/*/features_student-*/*.h5"))
    features = {s.name: StoredRows.of(folder / f"{s.name}.h5") for s in cohort.slides}
    measured = measure_embeddings(cohort, features)
    assert measured is not None and measured.counts.tolist() == [8, 12]
    means = [features[s.name]().mean(axis=0) for s in cohort.of("train")]
    np.testing.assert_allclose(measured.mean, np.mean(means, axis=0), atol=1e-5)
    assert measured.directions.shape == (4, measured.mean.size)


# ---------------------------------------------------------------- phantoms


def painted(folder: Path, name: str, seed: int, look: PhantomLook) -> Path:
    return write_slide(folder, PhantomSlide(name, NORMAL, seed, (1536, 1024)), look)


def predicted(path: Path, bundle: Bundle, scope: RegionOfInterest | None = None) -> tuple[Prediction, list[str]]:
    """Return the prediction of a slide, and its notices."""
    with Slide(path) as slide:
        events = list(predict(slide, bundle, device=torch.device("cpu"), **({"scope": scope} if scope else {})))
    assert isinstance(events[-1], Finished)
    return events[-1].result, [event.message for event in events if isinstance(event, Notice)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the shipped model of phantoms with the statistics of twenty-four of them."""
    folder = tmp_path_factory.mktemp("statistics")
    plain = Bundle(shutil.copytree(Bundle("demo").path, folder / "bundle"))
    paths = [painted(folder, f"train{i}", i, PhantomLook()) for i in range(24)]
    means = np.array([predicted(path, plain)[0].student.embedding for path in paths])
    write_embedding_statistics(plain.path, fit_embedding_statistics(means[:18], each(18), means[18:]), plain.sha256)
    return Bundle(plain.path)


def test_phantoms_of_another_stain_lie_farther(bundle: Bundle, tmp_path: Path) -> None:
    same = [predicted(painted(tmp_path, f"same{i}", 100 + i, PhantomLook()), bundle) for i in range(4)]
    other_look = replace(PhantomLook(), stain_mean=(0.5, 1.7))
    other = [predicted(painted(tmp_path, f"other{i}", 100 + i, other_look), bundle) for i in range(4)]
    near, far = ([p.cohort_distance for p, _ in group] for group in (same, other))
    assert all(d is not None and not d.is_outside and d.slides == 24 for d in near)
    assert min(d.quantile for d in far if d) > max(d.quantile for d in near if d)
    assert all(
        d is not None and d.warning in p.warnings and d.warning in told for d, (p, told) in zip(far, other, strict=True)
    )
    assert not any("outside the training slides" in warning for p, _ in same for warning in p.warnings)


def test_the_distance_is_stored_and_listed(bundle: Bundle, tmp_path: Path) -> None:
    prediction, _ = predicted(painted(tmp_path, "a", 100, PhantomLook()), bundle)
    file = build_prediction_file(prediction)
    content = file.as_json()
    distance = prediction.cohort_distance
    assert distance is not None
    assert content["cohort_distance"] == {"distance": distance.distance, "quantile": distance.quantile, "slides": 24}
    (tmp_path / "out" / "a").mkdir(parents=True)
    file.write(tmp_path / "out" / "a")
    write_predictions_table(tmp_path / "out")
    header, row = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    (cells,) = csv.DictReader([header, row])
    assert cells["distance_quantile"] == f"{distance.quantile:.4f}"
    assert cells["warnings"] == " | ".join(prediction.warnings) and prediction.warnings


def test_a_region_and_an_old_bundle_have_no_distance(bundle: Bundle, tmp_path: Path) -> None:
    import shapely

    path = painted(tmp_path, "a", 100, PhantomLook())
    region = RegionOfInterest("region", (Region("part", shapely.box(0, 0, 1400, 1000)),))
    assert predicted(path, bundle, region)[0].cohort_distance is None
    old = Bundle("demo")
    assert old.sha256 == bundle.sha256, "the statistics are no part of the model"
    prediction, _ = predicted(path, old)
    assert prediction.cohort_distance is None
    assert "cohort_distance" not in build_prediction_file(prediction).as_json()
    now, _ = predicted(path, bundle)
    assert now.student.logits == prediction.student.logits
