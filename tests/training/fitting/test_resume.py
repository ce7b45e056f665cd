"""Resumed fits: killed, stopped, cancelled, out of disk, with half-written checkpoints; the result is the same."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import lightning as L
import pytest
import torch

from lrmil_training.fitting.checkpoints import find_checkpoint, last_files, read_best, read_score
from lrmil_training.fitting.fit import fit
from lrmil_training.fitting.plan import StoppedError
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Progress
from support import fits
from support.fits import Stepped, Toy, drained, figures, maker, plan
from support.processes import ended, start

KINDS = {"Toy": Toy, "Stepped": Stepped}


def _killed(folder: Path, kind: type[Toy], after: int | None) -> dict[tuple[str, int], float]:
    """Fit in a process of its own, kill it after an epoch if one is given, and return what it had reported.

    Always in a process of its own: threads and other state that tests leave in this one change the last bits.
    """
    receive, send = multiprocessing.Pipe(duplex=False)
    process = start(fits.tell, folder, kind, send)
    send.close()  # so that the end of the process ends the pipe
    events: list[Event] = []
    with suppress(EOFError):
        while True:
            events.append(receive.recv())
            if isinstance(events[-1], Progress) and events[-1].done == after:
                process.kill()
                break
    assert ended(process) == (-signal.SIGKILL if after else 0)
    return figures(events)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_twice_and_resumed_equals_unbroken(tmp_path: Path, kind: str) -> None:
    """Weights, optimizer, schedule, average, best state and patience go on as if nothing had happened."""
    whole = _killed(tmp_path / "whole", KINDS[kind], None)
    rng = random.Random(os.getpid())
    first = rng.randint(1, 3)
    broken = _killed(tmp_path / "broken", KINDS[kind], first)
    broken |= _killed(tmp_path / "broken", KINDS[kind], first + rng.randint(1, 3))
    rest = _killed(tmp_path / "broken", KINDS[kind], None)
    assert rest and min(step for _, step in rest) >= first
    assert whole == pytest.approx(broken | rest, abs=1e-6)
    states = [read_best(plan(tmp_path / name)) for name in ("whole", "broken")]
    assert all(torch.allclose(states[0][name].float(), states[1][name].float(), atol=1e-6) for name in states[0])


def _broken_off(folder: Path, after: int, **settings: object) -> None:
    stream = fit(maker(5), plan(folder, **settings))
    for event in stream:
        if isinstance(event, Progress) and event.done == after:
            break
    stream.close()


def test_best_epoch_before_the_kill_is_kept(tmp_path: Path) -> None:
    """The state returned is that of the best epoch, though the process that saw it is gone."""
    settings = {"lr": 0.3}  # gets worse soon

    def selected(folder: Path, stop_after: int) -> tuple[int, dict[str, torch.Tensor]]:
        if stop_after:
            stream = fit(maker(5, **settings), plan(folder))
            next(e for e in stream if isinstance(e, Progress) and e.done == stop_after)
            stream.close()
        events, state = drained(fit(maker(5, **settings), plan(folder)))
        last = max(e.done for e in events if isinstance(e, Progress))
        return last, state

    end, whole = selected(tmp_path / "whole", 0)
    assert end < 9  # it ended early, so the best epoch lies `patience` before
    ended, resumed = selected(tmp_path / "broken", end - 2)
    assert ended == end
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_half_written_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    """A file cut short is passed over; where both are broken the stage starts afresh."""
    _broken_off(tmp_path, 4)
    (tmp_path / ".toy.last.ckpt.partial").write_bytes(b"left by a killed process")
    (tmp_path / ".toy.ranks.abc").mkdir()
    last, previous = last_files(plan(tmp_path))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    checkpoint = find_checkpoint(plan(tmp_path))
    assert checkpoint is not None and checkpoint.path == previous and checkpoint.epoch == 3
    events, state = drained(fit(maker(5), plan(tmp_path)))
    _, whole = drained(fit(maker(5), plan(tmp_path / "whole")))
    assert min(e.done for e in events if isinstance(e, Progress)) == 4
    assert all(torch.equal(whole[name], state[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {"toy.ckpt", "toy.done", "whole"}


def test_another_key_starts_afresh(tmp_path: Path) -> None:
    """A checkpoint made under other settings is never continued, and a finished stage is fitted again."""
    _broken_off(tmp_path, 3)
    assert find_checkpoint(plan(tmp_path, key="other")) is None
    events, _ = drained(fit(maker(5), plan(tmp_path, key="other")))
    assert min(e.done for e in events if isinstance(e, Progress)) == 1
    again, _ = drained(fit(maker(5), plan(tmp_path, key="other")))
    assert not [e for e in again if isinstance(e, Progress)]
    anew, _ = drained(fit(maker(5), plan(tmp_path)))
    assert [e for e in anew if isinstance(e, Progress)]


def test_stop_file_ends_after_the_batch(tmp_path: Path) -> None:
    """No signals: Windows has none. The sentence says how to go on."""
    stop = tmp_path / "stop"
    stream = fit(maker(5), plan(tmp_path, stop=stop, epochs=400, patience=400))
    next(e for e in stream if isinstance(e, Progress) and e.done == 2)
    stop.touch()
    with pytest.raises(StoppedError, match=r"toy was stopped because the file .* same command again"):
        drained(stream)
    checkpoint = find_checkpoint(plan(tmp_path))
    assert checkpoint is not None and checkpoint.epoch >= 2


def test_full_disk_is_one_sentence_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays there, nothing half-written is left, and there is a way on."""
    save = L.Trainer.save_checkpoint

    def full(trainer: L.Trainer, path: Path, *args: object) -> None:
        if trainer.current_epoch == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, path)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(LrmilError, match=r"toy\.last\.ckpt .*: no space is left on the disk .* same command again"):
        drained(fit(maker(5), plan(tmp_path)))
    assert not list(tmp_path.glob(".*"))
    checkpoint = find_checkpoint(plan(tmp_path))
    assert checkpoint is not None and checkpoint.epoch == 2
    monkeypatch.undo()
    _, state = drained(fit(maker(5), plan(tmp_path)))
    _, whole = drained(fit(maker(5), plan(tmp_path / "whole")))
    assert all(torch.equal(whole[name], state[name]) for name in whole)


def test_nan_says_term_and_batch_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """The last good checkpoint is that of the epoch before."""
    with pytest.raises(LrmilError, match="loss term 'ce' is nan at batch 2; lower the learning rate"):
        drained(fit(maker(5, bad_batch=302), plan(tmp_path)))
    checkpoint = find_checkpoint(plan(tmp_path))
    assert checkpoint is not None and checkpoint.epoch == 3


def test_the_best_figure_comes_with_the_best_state(tmp_path: Path) -> None:
    """Broken off after the best epoch, the figure is still that of the unbroken stage: learning rates are compared."""
    whole = plan(tmp_path / "whole")
    events, _ = drained(fit(maker(5, lr=0.3), whole))  # gets worse soon
    seen = {epoch: value for (name, epoch), value in figures(events).items() if name == "select"}
    best = max(seen, key=lambda epoch: seen[epoch])
    assert best < max(seen) - 1
    broken = plan(tmp_path / "broken")
    stream = fit(maker(5, lr=0.3), broken)
    next(e for e in stream if isinstance(e, Progress) and e.done == best + 2)
    stream.close()
    drained(fit(maker(5, lr=0.3), broken))
    assert read_score(whole) == seen[best]
    assert read_score(broken) == seen[best]
    drained(fit(maker(5, lr=0.3), broken))  # a stage that has ended keeps it too
    assert read_score(broken) == seen[best]


def test_a_state_without_its_figure_is_told(tmp_path: Path) -> None:
    """As earlier versions wrote it: one sentence, and what to delete."""
    torch.save({"state_dict": {}}, tmp_path / "toy.ckpt")
    with pytest.raises(LrmilError, match="without its selection figure; delete "):
        read_score(plan(tmp_path))
