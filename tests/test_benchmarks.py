"""The benchmarks' own arithmetic: what they read, what they standardise by, what they call a deviation."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLE = """\
1,3,10,0
0,1,-1,5
0,1,-3,5
1,3,20,0
1,2,7,9
"""


@pytest.fixture
def musk1(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("musk1")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "bags.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def easy_bags(path: Path, bags: int = 24, seed: int = 0) -> Path:
    """Write bags of 2 to 5 instances; a positive one holds a single instance that is large in feature 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(bags):
        count = int(rng.integers(2, 6))
        features = 100 * rng.standard_normal((count, 4)) + 30
        features[0, 1] += 1500 * (number % 2)
        rows += [[number % 2, number, *row] for row in features]
    np.savetxt(path, rows, delimiter=",")
    return path


def test_musk1_rows_become_bags_in_the_order_of_their_numbers(musk1: ModuleType, table: Path) -> None:
    """Column 0 is the label of the bag and column 1 its number, wherever its rows stand; neither is a feature."""
    bags = musk1.read_bags(table)
    assert bags.labels.tolist() == [0, 1, 1]
    assert [bag.tolist() for bag in bags.instances] == [[[-1, 5], [-3, 5]], [[7, 9]], [[10, 0], [20, 0]]]


@pytest.mark.parametrize(
    ("text", "words"),
    [("1,1,5\n0,1,6\n", "bag 1 have both labels"), ("2,1,5\n", "expected 0 and 1"), ("-1,1,5\n", "expected 0 and 1")],
)
def test_musk1_with_impossible_labels_is_refused(musk1: ModuleType, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        musk1.read_bags(path)


def test_musk1_is_the_published_set(musk1: ModuleType, shared_data: Path) -> None:
    """92 molecules, 47 of them musks, 476 shapes of 166 features."""
    bags = musk1.read_bags(shared_data / "features" / "musk1.csv")
    assert (len(bags.instances), bags.labels.sum()) == (92, 47)
    assert torch.cat(bags.instances).shape == (476, 166)


def test_only_the_training_bags_say_how_to_standardise(musk1: ModuleType, table: Path) -> None:
    """Bags 0 and 2: feature 0 has mean 6.5; feature 1 would be 2.5. The test bag is measured in their units."""
    bags = musk1.read_bags(table)
    scaled = musk1.standardised(bags, np.array([0, 2]))
    seen = torch.cat([scaled[0], scaled[2]])
    assert torch.allclose(seen.mean(dim=0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(seen.std(dim=0), torch.ones(2), atol=1e-6)
    sd = np.std([-1, -3, 10, 20], ddof=1)
    assert scaled[1][0, 0].item() == pytest.approx((7 - 6.5) / sd, rel=1e-5)


def test_a_feature_that_never_varies_is_not_divided_by_nothing(musk1: ModuleType, table: Path) -> None:
    scaled = musk1.standardised(musk1.read_bags(table), np.array([0]))
    assert scaled[0][:, 1].tolist() == [0, 0] and scaled[1][0, 1].item() == 4


def test_deviations_say_over_what(musk1: ModuleType) -> None:
    """Two runs of two folds: .8 .6 and 1 .8; mean .8; over folds sd √(.08 / 3), over runs .7 and .9: sd √.02."""
    found = musk1.summary(np.array([[0.8, 0.6], [1.0, 0.8]]))
    assert found["mean"] == pytest.approx(0.8)
    assert found["sd_folds"] == pytest.approx((0.08 / 3) ** 0.5) and found["se_folds"] == pytest.approx(
        found["sd_folds"] / 2
    )
    assert found["sd_runs"] == pytest.approx(0.02**0.5) and found["se_runs"] == pytest.approx(0.1)


def test_one_run_has_no_deviation_over_runs(musk1: ModuleType) -> None:
    found = musk1.summary(np.array([[0.5, 1.0]]))
    assert set(found) == {"mean", "sd_folds", "se_folds"}
    assert "over means of runs" not in musk1.report("plain", found, (1, 2), 3.0)


@pytest.mark.parametrize("body", ["plain", "mlp"])
def test_the_network_ends_in_our_mil(musk1: ModuleType, body: str) -> None:
    """What is measured is `GatedAttentionMil`, after the published transform of instances where there is one."""
    from napari_lrmil.core.mil import GatedAttentionMil

    model = musk1.network(166, musk1.BODIES[body])
    mil = model[-1]
    assert isinstance(mil, GatedAttentionMil)
    assert (mil.dim, mil.hidden, mil.classes) == ({"plain": 166, "mlp": 64}[body], 64, 2)
    assert [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)] == list(
        musk1.BODIES[body].widths
    )
    assert model(torch.randn(5, 166)).logits.shape == (2,)


def test_a_run_tests_every_bag_once_and_is_a_function_of_its_seed(musk1: ModuleType, tmp_path: Path) -> None:
    bags = musk1.read_bags(easy_bags(tmp_path / "easy.csv"))
    settings = musk1.Settings((4,), 0.2, 3, "sgd", 1e-3, 1e-3, 2)
    one, again = (list(musk1.one_run(bags, settings, 4, seed=5)) for _ in range(2))
    assert one == again and len(one) == 4


def test_an_easy_signal_is_learned_and_written_down(
    musk1: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One instance decides the bag: the whole script finds it, and the file holds each fold, settings and spread."""
    data, out = easy_bags(tmp_path / "easy.csv", 40), tmp_path / "out.json"
    call = ["musk1.py", "--data", str(data), "--folds", "4", "--runs", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", call)
    musk1.main()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["mean"] >= 0.9
    assert np.shape(found["accuracies"]) == (2, 4) and found["mean"] == pytest.approx(np.mean(found["accuracies"]))
    assert found["settings"]["optimizer"] == "adam" and found["sd_runs"] >= 0
    assert f"accuracy {found['mean']:.3f} (published 0.900 ± 0.050)" in capsys.readouterr().out
