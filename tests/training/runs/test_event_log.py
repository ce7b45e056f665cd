"""Event log of a run: what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrmil_training.runs.event_log import EventLog, hide_folders, read_events
from napari_lrmil.core.events import Failed, Finished


def test_folders_that_may_name_a_user_are_left_out_of_messages(tmp_path: Path) -> None:
    cohort, run = tmp_path / "alice" / "slides", tmp_path / "alice" / "run"
    events = [Failed(f"{cohort / 's1.tif'}: no such file", "s1", "features"), Finished(run)]
    for hidden, message, result in (
        ({cohort, run}, "s1.tif: no such file", "run"),
        (None, f"{cohort / 's1.tif'}: no such file", str(run)),
    ):
        folder = tmp_path / str(hidden is None)
        with EventLog(folder, hidden) as log:
            for event in events:
                log.write(event)
        first, last = read_events(folder / "events.jsonl")
        assert (first["message"], last["result"]) == (message, result)


def test_the_home_becomes_a_tilde_and_the_inner_folder_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/alice")
    folders = [Path("/data/cohort"), Path("/data/cohort/run")]
    assert hide_folders("/data/cohort/run/a.h5 of /data/alice/b", folders) == "a.h5 of ~/b"
    assert hide_folders("/data/cohort", folders) == "cohort"
