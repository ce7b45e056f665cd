"""A half-finished run of version 0.1.0 is resumed: finished stages count as done, the unfinished one goes on."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lrmil_training.config import Stage3Config, TrainConfig, load_config
from lrmil_training.config import files as config_module
from lrmil_training.runs.event_log import read_events
from lrmil_training.train import train
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Finished, Progress, StageDone
from napari_lrmil.core.phantom import make_cohort

STORED = Path(__file__).parent / "v0_1" / "half_run"  # see its README
STAGES = ["teacher", "stage1", "stage2", "stage3", "labels_only"]  # that had ended
EPOCHS = 3  # of `finetuned`, the stage that was killed
CPU = torch.device("cpu")


class LaterStage3(Stage3Config):
    """Stage 3 with a field that 0.1.0 does not have."""

    drop_path: float = 0.0


class LaterConfig(TrainConfig):
    """The configuration of a later version."""

    stage3: LaterStage3 = LaterStage3()
    tint: str = "none"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the slides and the cohort table of the stored run."""
    folder = tmp_path_factory.mktemp("half_run")
    for split, count, seed in (("train", 4, 1), ("val", 2, 2), ("test", 2, 3)):
        list(make_cohort(folder, count, (1024, 768), seed, split=split))
    return folder


@pytest.fixture
def half_run(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the stored run; its encoder is in the working directory."""
    shutil.copy(STORED / "tiny.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(STORED / "run", tmp_path / "run"))


def test_a_half_finished_run_is_resumed(slides: Path, half_run: Path) -> None:
    """No stage that had ended has an epoch again, and the unfinished one begins after its last whole epoch."""
    finished = {path: path.read_bytes() for stage in STAGES for path in half_run.rglob(f"{stage}.*")}
    assert len(finished) == 2 * len(STAGES)
    assert not (half_run / "metrics.json").exists()
    events = list(train(slides / "cohort.csv", half_run, load_config(half_run / "config.yaml"), CPU))
    fitted = [(e.stage, e.done) for e in events if isinstance(e, Progress) and e.unit == "epochs"]
    assert fitted == [("finetuned", epoch) for epoch in range(EPOCHS + 1, 9)]
    assert [e.stage for e in events if isinstance(e, StageDone)] == [*STAGES, "finetuned", "evaluation"]
    assert events[-1] == Finished(half_run)
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert len(list((half_run / "checkpoints").iterdir())) == len(STAGES) + 1
    assert {line["attempt"] for line in read_events(half_run / "events.jsonl")} == {0, 1}


def test_a_version_with_new_fields_resumes_it(slides: Path, half_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that lack the fields count as the same, and so do the stages."""
    monkeypatch.setattr(config_module, "TrainConfig", LaterConfig)
    config = load_config(half_run / "config.yaml")
    assert isinstance(config, LaterConfig)
    done = []
    with closing(train(slides / "cohort.csv", half_run, config, CPU)) as events:
        for event in events:
            if isinstance(event, Progress) and event.unit == "epochs":
                break
            done += [event.stage] if isinstance(event, StageDone) else []
    assert (event.stage, event.done) == ("finetuned", EPOCHS + 1)
    assert done == STAGES
    assert load_config(half_run / "config.yaml") == config


def test_another_value_of_a_new_field_is_another_run(
    slides: Path, half_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored run had the default, though its version did not have the field."""
    monkeypatch.setattr(config_module, "TrainConfig", LaterConfig)
    config = load_config(half_run / "config.yaml", ["stage3.drop_path=0.1"])
    with pytest.raises(
        ConfigError, match=r"the folder holds a run with another configuration .*stage3\.drop_path is 0\.0, this"
    ):
        next(iter(train(slides / "cohort.csv", half_run, config, CPU)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (b"\nwarp: 9\n", "configuration key 'warp' is unknown"),
        (b"\n1: 9\n", "configuration key '1' is unknown"),
        (b"\nhr_mpp: [\n", "not a readable YAML file"),
        (b"\xff\xfe", "not a readable YAML file"),
    ],
    ids=["of a newer version", "no name", "no YAML", "no text"],
)
def test_settings_that_cannot_be_read_are_not_overwritten(
    slides: Path, half_run: Path, damage: bytes, said: str
) -> None:
    """One sentence says why and how to go on."""
    file = half_run / "config.yaml"
    config = load_config(file)
    file.write_bytes(file.read_bytes() + damage)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=rf"(?s)cannot read the settings .*{said}.* version that began it"):
        next(iter(train(slides / "cohort.csv", half_run, config, CPU)))
    assert file.read_bytes() == before
