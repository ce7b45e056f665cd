"""Order, means, memory and precision of a fit; resuming has its own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lrmil_training.fitting.checkpoints import read_score
from lrmil_training.fitting.epochs import epoch_seed
from lrmil_training.fitting.fit import EpochMeans, EpochSampler, all_gather_rows, fit
from lrmil_training.fitting.trainer import _Average, _precision
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Notice, Progress
from support.fits import CPU, Toy, drained, figures, maker, plan, samples


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """Asking for epoch 3 first gives what it gives after epochs 0 to 2."""
    sampler, late = EpochSampler(11, 4), EpochSampler(11, 4)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    late.set_epoch(3)
    assert list(late) == orders[3]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert list(EpochSampler(11, 5)) != orders[0]
    assert list(EpochSampler(5, 4, shuffle=False)) == [0, 1, 2, 3, 4]


def test_ranks_share_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training all get equally many, in validation each sample is seen once."""
    shares: dict[bool, list[list[int]]] = {True: [], False: []}
    for rank in range(3):
        monkeypatch.setattr("lrmil_training.fitting.epochs.rank_and_world_size", lambda rank=rank: (rank, 3))
        for shuffle, ranks in shares.items():
            sampler = EpochSampler(10, 1, shuffle=shuffle)
            ranks.append(list(sampler))
            assert len(ranks[-1]) == len(sampler)
    assert [len(share) for share in shares[True]] == [4, 4, 4]
    assert {i for share in shares[True] for i in share} == set(range(10))
    assert sorted(i for share in shares[False] for i in share) == list(range(10))
    with pytest.raises(LrmilError, match="2 samples cannot be shared out among 3"):
        len(EpochSampler(2, 1))


def test_seeds_of_epochs_differ() -> None:
    """Between epochs, ranks and seeds."""
    assert len({epoch_seed(s, e, r) for s in range(3) for e in range(3) for r in range(3)}) == 27


def test_means_weigh_batches_by_size() -> None:
    """The last, smaller batch counts less; taking begins anew."""
    means = EpochMeans("train")
    means.add({"ce": torch.tensor(1.0), "kl": torch.tensor(0.0)}, 3, 0)
    means.add({"ce": torch.tensor(5.0), "kl": torch.tensor(4.0)}, 1, 1)
    assert means.take() == {"train/ce": 2.0, "train/kl": 1.0}
    assert means.take() == {}
    with pytest.raises(LrmilError, match="'kl' is inf at batch 7"):
        means.add({"ce": torch.tensor(1.0), "kl": torch.tensor(float("inf"))}, 1, 7)
    assert all_gather_rows([1, 2]) == [1, 2]


def test_events_of_an_epoch_come_together(tmp_path: Path) -> None:
    """Figures first, then progress; the same again is the same to the last digit."""
    events, state = drained(fit(maker(5), plan(tmp_path / "a")))
    again, same = drained(fit(maker(5), plan(tmp_path / "b")))
    assert figures(events) == figures(again)
    assert all(torch.equal(state[name], same[name]) for name in state)
    done = [e.done for e in events if isinstance(e, Progress)]
    assert done == list(range(1, len(done) + 1))
    names = {"train/ce", "val/auroc", "val/n", "select"}
    assert set(figures(events)) == {(name, epoch - 1) for name in names for epoch in done}


class _Hungry(Toy):
    """Holds batches of up to 4 samples."""

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if len(batch[0]) > 4 and (self.current_epoch, index) == (1, 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().training_step(batch, index)


def test_memory_that_runs_out_halves_the_batch(tmp_path: Path) -> None:
    """It says so, starts the stage afresh, and ends as a run with that batch size from the start would."""
    events, state = drained(fit(maker(5, _Hungry), plan(tmp_path)))
    messages = [e.message for e in events if isinstance(e, Notice)]
    assert [m.rpartition(" with ")[2] for m in messages] == ["0.5 of the batch size", "0.25 of the batch size"]
    small = maker(5)
    _, whole = drained(fit(lambda: small(scale=0.25), plan(tmp_path / "whole")))
    assert all(torch.equal(whole[name], state[name]) for name in whole)
    assert read_score(plan(tmp_path)) == read_score(plan(tmp_path / "whole"))


def test_the_figure_of_an_attempt_that_ran_out_of_memory_does_not_count(tmp_path: Path) -> None:
    """What it saw on validation belongs to weights that were thrown away."""

    class Boasting(_Hungry):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if len(self.trainer.train_dataloader) < 24:  # batches of more than 4
                self.log("select", 99.0)

    drained(fit(maker(5, Boasting), plan(tmp_path)))
    assert read_score(plan(tmp_path)) < 0


def test_a_halved_batch_size_survives_a_break(tmp_path: Path) -> None:
    """A schedule counts steps: going on with another batch size would not be the same run."""
    stream = fit(maker(5, _Hungry), plan(tmp_path))
    next(e for e in stream if isinstance(e, Progress) and e.done == 4)
    stream.close()
    events, _ = drained(fit(maker(5, _Hungry), plan(tmp_path)))
    assert min(e.done for e in events if isinstance(e, Progress)) == 5
    assert not [e for e in events if isinstance(e, Notice)]


def test_a_step_that_cannot_be_halved_is_one_sentence(tmp_path: Path) -> None:
    """A bag is one step: there is no smaller batch."""
    hungry = maker(5, _Hungry)
    with pytest.raises(LrmilError, match="the memory of cpu does not hold a single step; use another device"):
        drained(fit(lambda: hungry(), plan(tmp_path)))


@pytest.mark.parametrize(("precision", "wanted"), [("auto", "32-true"), ("32", "32-true"), ("bf16", "bf16-mixed")])
def test_precision(tmp_path: Path, precision: Any, wanted: str) -> None:
    """On a CPU 32 bits unless asked otherwise."""
    assert _precision(plan(tmp_path, precision=precision)) == wanted


def test_bf16_learns(tmp_path: Path) -> None:
    """Half the bits, the same result within noise."""
    events, state = drained(fit(maker(5), plan(tmp_path, precision="bf16")))
    assert max(v for (name, _), v in figures(events).items() if name == "val/auroc") > 0.8
    assert all(value.dtype != torch.bfloat16 for value in state.values())


class _Undefined(Toy):
    def on_validation_epoch_end(self) -> None:
        self.seen.clear()
        self.log("select", float("nan"))


def test_the_average_is_on_the_device_that_computes() -> None:
    """On the CPU it would copy all weights from a GPU after every step. The device `meta` stands in for a GPU."""
    average, trainer = _Average(0.9), SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(cast(L.Trainer, trainer), Toy(), "fit")
    assert {value.device.type for value in average.weights().values()} == {"meta"}


def test_undefined_validation_figure_is_an_error(tmp_path: Path) -> None:
    """It would otherwise count as never better and end the stage in silence."""
    with pytest.raises(LrmilError, match="validation figure is nan in epoch 1"):
        drained(fit(maker(5, _Undefined), plan(tmp_path)))


def test_fewer_samples_than_a_batch_is_one_sentence(tmp_path: Path) -> None:
    """Nothing was learned: the weights as they came are no result."""
    few = samples(8, 1)

    def make() -> tuple[L.LightningModule, Any, Any]:
        return Toy(), DataLoader(few, 16, drop_last=True), DataLoader(few, 8)

    with pytest.raises(LrmilError, match="not one whole batch"):
        drained(fit(make, plan(tmp_path)))


def test_without_a_key_nothing_is_continued(tmp_path: Path) -> None:
    """Neither a finished nor an unfinished stage; and no checkpoints but the best are written."""
    keyless = replace(plan(tmp_path), key="", epochs=2)
    for _ in range(2):
        events, _ = drained(fit(maker(5), keyless))
        assert [e.done for e in events if isinstance(e, Progress)] == [1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {"toy.ckpt", "toy.done"}


def test_plain_loaders_are_refused_on_several_devices(tmp_path: Path) -> None:
    """Every process would train on everything."""
    from lrmil_training.fitting.trainer import run_stage

    def make() -> tuple[L.LightningModule, Any, Any]:
        return Toy(), DataLoader(samples(8, 1)), DataLoader(samples(8, 1))

    with pytest.raises(TypeError, match="need an EpochSampler"):
        run_stage(make, plan(tmp_path, devices=2, device=CPU), 1.0, {}, lambda _: None, lambda: False)
