"""Training run without a screen: growing log, time left, writer of the folder, killed process, settings, estimate."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrmil_training.config import PRESETS, dump_config
from lrmil_training.estimate import throughput_keys
from lrmil_training.runs.event_log import EVENTS
from lrmil_training.runs.lock import LOCK_FILE, STOP_FILE, LockOwner, owner_to_json
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.train import run_process as training_run
from napari_lrmil.plugin.train.cohort_table import CohortRow, CohortTable, SlideCheck, SlideChecked
from napari_lrmil.plugin.train.config_fields import flatten_config, list_config_fields, preset_config, unflatten_config
from napari_lrmil.plugin.train.encoder_choices import describe_encoder
from napari_lrmil.plugin.train.estimate import estimate_training
from napari_lrmil.plugin.train.result_table import read_run_result
from napari_lrmil.plugin.train.run_monitor import SILENCE_LIMIT_S, HeartbeatMonitor, JsonLinesTail, RunLogState
from napari_lrmil.plugin.train.run_process import RunPhase, TrainCommand, TrainingRun
from support.fake_slides import one_sentence
from support.run_folders import write_run, write_series
from support.training_child import CHILD

WAIT_S = 240.0


def line(seq: int, event: str, attempt: int = 0, at: float = 0.0, **values: Any) -> dict[str, Any]:
    return {"seq": seq, "attempt": attempt, "time": at, "event": event, **values}


# ---------------------------------------------------------------- the log


def test_only_what_is_new_is_read_and_half_a_line_waits(tmp_path: Path) -> None:
    tail = JsonLinesTail(tmp_path / EVENTS)
    assert tail.read() == []
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"seq": 0}\n{"seq": 1}\n{"se')
        file.flush()
        assert [entry["seq"] for entry in tail.read()] == [0, 1]
        assert tail.read() == []
        file.write('q": 2}\nno json\n[3]\n{"seq": 4}\n')
        file.flush()
        assert [entry["seq"] for entry in tail.read()] == [2, 4]
    assert tail.broken == 2


def test_a_large_log_is_read_in_pieces(tmp_path: Path) -> None:
    """So that opening a long run does not hold the window up."""
    (tmp_path / EVENTS).write_text("".join(f'{{"seq": {i}}}\n' for i in range(1000)))
    tail, entries = JsonLinesTail(tmp_path / EVENTS), []
    pieces = 0
    while not pieces or tail.more:
        entries += tail.read(2000)
        pieces += 1
    assert [entry["seq"] for entry in entries] == list(range(1000)) and pieces > 5


def test_a_line_cut_off_by_a_kill_is_written_over_by_the_next_attempt(tmp_path: Path) -> None:
    path, tail = tmp_path / EVENTS, JsonLinesTail(tmp_path / EVENTS)
    path.write_text('{"seq": 0}\n{"seq": 1, "atte')
    assert len(tail.read()) == 1
    path.write_text('{"seq": 0}\n{"seq": 1, "attempt": 1}\n')
    assert [entry.get("attempt") for entry in tail.read()] == [1]


def test_progress_and_time_left() -> None:
    """Epochs that an earlier attempt made do not count as made at this attempt's pace."""
    log = RunLogState()
    log.update([line(0, "Progress", at=100, stage="HR features", done=0, total=4, unit="slides")])
    log.update([line(1, "Progress", at=105, stage="s0", done=30, total=60, unit="patches")])
    pace = log.progress(110)
    assert pace is not None and pace.share == pytest.approx(0.125) and pace.left == pytest.approx(70)
    log.update([line(2, "Progress", at=140, stage="HR features", done=4, total=4, unit="slides")])
    assert log.done == {"HR features": 40} and log.progress() is None
    epochs = [
        line(3 + i, "Progress", 1, 200 + 10 * i, stage="teacher", done=6 + i, total=20, unit="epochs") for i in (0, 1)
    ]
    log.update(epochs)
    pace = log.progress(210)
    assert pace is not None and (pace.first, pace.done, pace.left) == (6, 7, pytest.approx(130))
    assert "teacher · 7 of 20 epochs · at most 2 min left" in pace.text
    log.update([line(9, "StageDone", 1, 300, stage="teacher", seconds=100.0), line(10, "Finished", 1, 301, result="r")])
    assert log.finished and log.done["teacher"] == 100


def test_what_resume_does_is_told_as_it_is() -> None:
    log = RunLogState()
    assert "no step is complete yet" in log.resume_text
    log.update([line(0, "Progress", at=100, stage="HR features", done=1, total=4, unit="slides")])
    assert "with the current slide" in log.resume_text
    log.update([line(1, "Progress", at=140, stage="HR features", done=4, total=4, unit="slides")])
    assert "after HR features" in log.resume_text
    log.update([line(2, "Metric", at=150, stage="teacher", name="train/ce", value=1.0, step=0)])
    assert "from the last complete epoch" in log.resume_text


def test_curves_grow_and_lines_of_another_version_are_passed_over() -> None:
    log = RunLogState()
    log.update([line(i, "Metric", stage="teacher", name="train/ce", value=1.0 / (1 + i), step=i) for i in range(3)])
    log.update([{"event": "Metric"}, {"nothing": 1}, line(4, "Dance", stage="x")])
    log.update(
        [line(5, "Failed", message="no tissue", subject="s1", step="features"), line(6, "Caution", message="few")]
    )
    assert log.curves[0].series["train/ce"] == {0: 1.0, 1: 0.5, 2: pytest.approx(1 / 3)}
    assert log.failures == {"s1": "no tissue"} and list(log.notices) == ["few"]


# ---------------------------------------------------------------- who writes


def write_lock(folder: Path, **fields: Any) -> None:
    owner = LockOwner("far-away", 7, "", time.time(), "token")
    (folder / LOCK_FILE).write_text(owner_to_json(replace(owner, **fields)))


def test_a_writer_elsewhere_is_known_by_its_beats(tmp_path: Path) -> None:
    """Another machine's clock is not asked: only whether something changes."""
    now = [1000.0]
    heart = HeartbeatMonitor(tmp_path, lambda: now[0])
    assert heart.check() is None
    write_lock(tmp_path)
    writer = heart.check()
    assert writer is not None and writer.is_alive and "process 7 on far-away" in writer.text
    now[0] += SILENCE_LIMIT_S - 1
    write_lock(tmp_path, heartbeats=1)
    assert heart.check().is_alive  # type: ignore[union-attr]  # the lock is there
    now[0] += SILENCE_LIMIT_S + 1
    writer = heart.check()
    assert writer is not None and not writer.is_alive and "silent for" in writer.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there are no namespaces of processes")
def test_a_dead_process_of_this_machine_is_no_writer(tmp_path: Path) -> None:
    write_lock(tmp_path, host=socket.gethostname(), pid=2**22 + 1, pid_namespace=os.readlink("/proc/self/ns/pid"))
    assert HeartbeatMonitor(tmp_path).check() is None


# ---------------------------------------------------------------- opening


def test_a_finished_run_opens_as_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"train": 8, "val": 6, "test": 8})
    (folder / "config.yaml").write_text(dump_config(preset_config("default")))
    run = TrainingRun()
    run.open(folder)
    assert run.phase is RunPhase.FINISHED and run.log.attempt == 1 and len(run.log.curves) == 4
    result = read_run_result(folder)
    assert result is not None and [row.name for row in result.rows[:2]] == ["HR teacher", "LR student"]
    assert [row.interval for row in result.rows] == ["no spread", "no spread", "0.44 to 1.00", "0.44 to 1.00"]
    assert result.reliability["student"] and "uncertain" in result.notes[1]


def test_a_series_has_a_mean_and_a_spread(tmp_path: Path) -> None:
    result = read_run_result(write_series(tmp_path / "run", {"train": 8, "val": 6, "test": 8}, 3))
    assert result is not None and "±" in result.rows[0].interval and "3 runs" in result.notes[0]


def test_half_written_figures_are_one_sentence(tmp_path: Path) -> None:
    assert read_run_result(tmp_path) is None
    for text in ('{"student": {"test"', '{"student": {"test": {"auroc": {}}}}', "[]"):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(LrmilError, match="cannot be read") as error:
            read_run_result(tmp_path)
        assert one_sentence(error.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LrmilError, match="no training run is here") as error:
        TrainingRun().open(tmp_path)
    assert one_sentence(error.value)


def test_a_run_of_another_version_is_shown_and_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\nwarp: 9\n")
    (tmp_path / EVENTS).write_text(
        json.dumps(line(0, "Metric", stage="teacher", name="train/ce", value=1, step=0)) + "\n"
    )
    run = TrainingRun()
    run.open(tmp_path)
    assert run.log.curves and run.phase is RunPhase.BROKEN
    assert "another version" in run.resume_blocked_by and "warp" in run.foreign


def test_a_run_without_its_table_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(preset_config("default")))
    run = TrainingRun()
    run.open(tmp_path)
    with pytest.raises(LrmilError, match="cohort table is not on this machine"):
        run.resume()


@pytest.mark.parametrize("stored", [{}, {"allow_missing": True}])
def test_a_run_resumes_with_the_option_that_it_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: dict[str, bool]
) -> None:
    commands = list[TrainCommand]()
    monkeypatch.setattr(TrainingRun, "_start", lambda _, command: commands.append(command))
    (tmp_path / "config.yaml").write_text(dump_config(preset_config("default")))
    (tmp_path / "cohort.csv").touch()
    (tmp_path / "call.json").write_text(json.dumps({"cohort": "cohort.csv", "device": "cpu"} | stored))
    run = TrainingRun()
    run.open(tmp_path)
    run.resume()
    assert ("--allow-missing" in commands[0].argv) == bool(stored)


# ---------------------------------------------------------------- the process


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small program that holds the folder stand in for the training."""

    def argv(call: TrainCommand) -> list[str]:
        return [sys.executable, "-c", CHILD, str(call.folder)]

    monkeypatch.setattr(TrainCommand, "argv", property(argv))


def until(run: TrainingRun, *phases: RunPhase) -> None:
    end = time.monotonic() + WAIT_S
    while run.phase not in phases:
        assert time.monotonic() < end, run.phase
        time.sleep(0.05)
        run.poll()


@pytest.mark.usefixtures("child")
def test_start_stop_resume_and_a_kill(tmp_path: Path) -> None:
    run, errors = TrainingRun(), list[str]()
    run.failed.connect(errors.append)
    table = tmp_path / "cohort.csv"
    table.touch()
    folder = tmp_path / "run"
    run.start(table, folder, preset_config("default"), "cpu")
    assert run.phase is RunPhase.STARTING and run.resume_blocked_by
    until(run, RunPhase.RUNNING)
    assert run.is_ours
    run.stop()
    assert (folder / STOP_FILE).exists()
    until(run, RunPhase.STOPPED)
    assert not errors and not run.resume_blocked_by
    run.resume(table, "cpu")
    until(run, RunPhase.RUNNING)
    while run.log.attempt < 1:
        run.poll()
    assert run._child is not None
    run._child.kill()
    until(run, RunPhase.BROKEN)
    assert len(errors) == 1 and "was killed (signal 9)" in errors[0] and "Resume" in errors[0]
    run.resume(table, "cpu")
    until(run, RunPhase.RUNNING)
    run.stop()
    until(run, RunPhase.STOPPED)


@pytest.mark.usefixtures("child")
def test_a_run_goes_on_without_its_window_and_another_one_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = TrainingRun(), TrainingRun()
    first.start(tmp_path / "cohort.csv", tmp_path / "run", preset_config("default"), "cpu")
    until(first, RunPhase.RUNNING)
    process = first._child
    first.release()
    monkeypatch.setattr(training_run, "_STARTED", {})  # as in another program, which did not start the process
    second.open(tmp_path / "run")
    until(second, RunPhase.RUNNING)
    assert not second.is_ours and second.writer is not None
    second.stop()
    until(second, RunPhase.STOPPED)
    assert process is not None and process.wait(WAIT_S) == 1


@pytest.mark.usefixtures("child")
def test_a_released_run_of_this_program_is_found_and_is_its_own_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "_STARTED", {})
    first, second = TrainingRun(), TrainingRun()
    folder = tmp_path / "run"
    first.start(tmp_path / "cohort.csv", folder, preset_config("default"), "cpu")
    assert TrainingRun.find_started() == folder and TrainingRun.find_released() is None
    first.release()
    assert TrainingRun.find_released() == folder
    second.open(folder)  # the process may still be loading, and then nothing in the folder says that it lives
    assert second.is_ours and second.is_alive and TrainingRun.find_released() is None
    until(second, RunPhase.RUNNING)
    second.stop()
    second.release()
    first.open(folder)
    assert first.phase in (RunPhase.STOPPING, RunPhase.STOPPED)
    until(first, RunPhase.STOPPED)
    assert TrainingRun.find_started() is None


def test_what_the_program_said_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "print('x'); print('error: lazyslide:uni2 could not be loaded; agree to its terms'); raise SystemExit(2)"
    monkeypatch.setattr(TrainCommand, "argv", property(lambda _: [sys.executable, "-c", code]))
    run, errors = TrainingRun(), list[str]()
    run.failed.connect(errors.append)
    run.start(tmp_path / "cohort.csv", tmp_path / "run", preset_config("default"), "cpu")
    until(run, RunPhase.BROKEN)
    assert errors == ["lazyslide:uni2 could not be loaded; agree to its terms"]
    later = TrainingRun()
    later.open(tmp_path / "run")
    assert later.phase is RunPhase.BROKEN and later.reason == errors[0]


def test_an_unwritable_folder_and_one_with_a_run_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = TrainingRun()
    with pytest.raises(LrmilError, match="cannot be written there") as error:
        run.start(tmp_path / "cohort.csv", tmp_path / "file" / "run", preset_config("default"), "cpu")
    assert one_sentence(error.value) and run.phase is RunPhase.NONE
    (tmp_path / "config.yaml").write_text(dump_config(preset_config("default")))
    with pytest.raises(LrmilError, match="already holds a run") as error:
        run.start(tmp_path / "cohort.csv", tmp_path, preset_config("default"), "cpu")
    assert one_sentence(error.value)


def test_the_call_is_the_command_line(tmp_path: Path) -> None:
    argv = TrainCommand(tmp_path / "c.csv", tmp_path / "run", tmp_path / "s.yaml", "cpu").argv
    assert argv[:4] == [sys.executable, "-m", "napari_lrmil", "train"] and argv[-2:] == ["--device", "cpu"]
    assert training_run.SETTINGS_FILE != "config.yaml"  # which is the program's own to write


# ---------------------------------------------------------------- settings and estimate


def test_the_form_has_every_setting_and_gives_it_back() -> None:
    for name in PRESETS:
        config = preset_config(name)
        values = flatten_config(config)
        by_key = {field.key: field for field in list_config_fields()}
        assert set(by_key) == set(values) and all(field.sentence for field in by_key.values())
        edited = {key: field.from_editor(field.to_editor(values[key])) for key, field in by_key.items()}
        assert unflatten_config(edited) == config
    assert by_key["stage1.epochs"].lowest == 0 and by_key["teacher.epochs"].lowest == 1
    assert by_key["stage2.init"].choices == ("teacher", "fresh", "frozen_head")


def test_an_encoder_that_is_not_at_hand_blocks_no_run() -> None:
    choice = describe_encoder("none")
    assert not choice.blocked_by and "HR features alone" in choice.text
    assert describe_encoder("nowhere").blocked_by


def test_the_estimate_says_what_it_rests_on(tmp_path: Path) -> None:
    table, remembered = CohortTable(), SettingsStore(tmp_path)
    assert estimate_training(table, preset_config("default"), "cpu", remembered) is None
    table.rows = tuple(CohortRow(Path(f"{i}.svs"), "ab"[i % 2], str(i), "train") for i in range(4))
    for row in table.rows[:2]:
        check = SlideCheck("", 0.5, 100, 1600, 1.0, table.plan)
        table._checks[row.key] = SlideChecked(row.key, check).check
    stated = estimate_training(table, preset_config("default"), "cpu", remembered)
    assert stated is not None and "6,400 HR and 400 LR patches, counted on 2 of 4 slides" in stated.basis
    assert "docs/explanation/decisions.md" in stated.basis and stated.seconds and stated.size > 6400 * 1280 * 4
    unknown = estimate_training(table, preset_config("default"), "cuda", remembered)
    assert unknown is not None and unknown.seconds is None and "unknown" in unknown.text
    remembered.remember_pace(throughput_keys(preset_config("default"), "cuda")[0], 64.0, 6400)
    learnt = estimate_training(table, preset_config("default"), "cuda", remembered)
    assert learnt is not None and learnt.seconds is not None and "earlier runs" in learnt.basis
