"""Draws of patients, patches and dimensions in a step: even, repeatable, and none at the neutral defaults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrmil_training.config import TeacherConfig, TrainConfig, build_config
from lrmil_training.data.bags import BagDataset, BagItem, class_weights, draw_rows
from lrmil_training.data.patient_groups import expected_draws, samples_by_patient
from lrmil_training.fitting.epochs import EpochSampler
from lrmil_training.stages.bag_fitting import drop_features, seeded_mil
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.errors import ConfigError
from support.run_folders import synthetic_cohort

PATIENTS = ["a", "a", "a", "a", "b", "c+d", "c"]


def test_a_slide_of_two_patients_is_a_sample_of_both() -> None:
    assert samples_by_patient(PATIENTS) == ((0, 1, 2, 3), (4,), (5, 6), (5,))


@given(
    patients=st.lists(st.sampled_from(["a", "b", "c", "a+b", "d"]), min_size=1, max_size=30), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_patients_are_drawn_evenly(patients: list[str], seed: int) -> None:
    """Over many epochs the draws of each slide are those expected; an epoch is as long as before."""
    samples = samples_by_patient(patients)
    expected = expected_draws(samples, len(patients))
    assert sum(expected) == pytest.approx(len(patients))
    sampler, counts = EpochSampler(len(patients), seed, patients=samples), Counter[int]()
    for epoch in range(400):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(patients)
        assert order == list(sampler), "a function of seed and epoch alone"
        counts.update(order)
    drawn = [counts[i] / 400 for i in range(len(patients))]
    np.testing.assert_allclose(drawn, expected, atol=0.3)


def test_an_epoch_gives_each_patient_its_turn() -> None:
    """Eight slides of two patients, seven of them of one: four draws each, and no slide of the seven twice."""
    sampler = EpochSampler(8, 1, patients=samples_by_patient(["a"] * 7 + ["b"]))
    order = list(sampler)
    assert order.count(7) == 4
    assert len(set(order)) == 5


def test_class_weights_follow_the_draws() -> None:
    """By hand: a has three slides of class 0, b one of class 1; drawn evenly, the classes weigh the same."""
    samples = samples_by_patient(["a", "a", "a", "b"])
    assert class_weights([0, 0, 0, 1], 2, "balanced") == pytest.approx([4 / 6, 2.0])
    assert class_weights([0, 0, 0, 1], 2, "balanced", expected_draws(samples, 4)) == pytest.approx([1.0, 1.0])


def context(config: TrainConfig) -> RunContext:
    encoder = cast(LoadedEncoder, SimpleNamespace(sha256="0" * 64))
    cohort = synthetic_cohort(Path("cohort"), {"train": 4, "val": 2})
    return RunContext(config, cohort, Path("run"), torch.device("cpu"), encoder)


def test_sampling_reaches_the_plan_and_the_key() -> None:
    by_slide, by_patient = (
        context(build_config({"sampling": s})).fit_plan("teacher", TrainConfig().teacher) for s in ("slide", "patient")
    )
    assert by_slide.patients == () and sorted(sum(by_patient.patients, ())) == [0, 1, 2, 3]
    assert by_slide.key != by_patient.key
    assert by_slide.key == context(TrainConfig()).fit_plan("teacher", TrainConfig().teacher).key


def test_patches_are_drawn_anew_in_every_epoch() -> None:
    """The teacher's scores go with their patches; a slide that has fewer gives all."""
    item = BagItem(torch.arange(50.0)[:, None], 0, torch.zeros(2), torch.arange(50.0))
    data = BagDataset([item], seed=3, max_patches=10)
    draws = []
    for data.epoch in (0, 1, 0):
        bag = data[0]
        assert len(bag.instances) == 10 and torch.equal(bag.instances[:, 0], bag.teacher_scores)
        draws.append(bag.instances[:, 0].tolist())
    assert draws[0] == draws[2] != draws[1]
    assert torch.equal(BagDataset([item], seed=3, max_patches=99)[0].instances, item.instances)


def test_dropout_draws_as_it_did_before_patches_could_be_drawn() -> None:
    """Runs of earlier versions go on with the same draws."""
    rows = draw_rows(np.random.default_rng([3, 1, 0]), 40, None, 0.4)
    assert rows.tolist() == np.flatnonzero(np.random.default_rng([3, 1, 0]).random(40) >= 0.4).tolist()


def test_dropped_dimensions_are_neutral_in_all_patches() -> None:
    """Standardised, a dimension is 0 in every patch or enlarged in every patch; the mean over draws is unchanged."""
    mil = seeded_mil(200, 2, TeacherConfig(), 0)
    mil.set_standard(torch.randn(200), torch.rand(200) + 0.5)
    instances = torch.randn(7, 200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = mil.standardise(drop_features(mil, instances, 0.5))
        mean = sum(mil.standardise(drop_features(mil, instances, 0.5)) for _ in range(4000)) / 4000
    plain = mil.standardise(instances)
    is_neutral = dropped.abs().amax(0) < 1e-5
    assert 70 < int(is_neutral.sum()) < 130
    torch.testing.assert_close(dropped[:, ~is_neutral], 2 * plain[:, ~is_neutral], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.35)


def test_without_dropout_nothing_is_drawn() -> None:
    instances, state = torch.randn(3, 5), torch.get_rng_state()
    assert drop_features(seeded_mil(5, 2, TeacherConfig(), 0), instances, 0.0) is instances
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "changes",
    [{"sampling": "site"}, {"teacher": {"feature_dropout": 1.0}}, {"stage2": {"patches_per_slide": 0}}],
)
def test_impossible_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"sampling|feature_dropout|patches_per_slide"):
        build_config(changes)
