"""Parts of a cohort, as tasks of a job array share them, and the script of such an array."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from napari_lrmil.cli.cohort_part import take_part
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from support.networks import untrained_bundle

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundle")).path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three slides, one of which is no slide."""
    folder = tmp_path_factory.mktemp("slides")
    for number, name in enumerate(("a", "b")):
        write_slide(folder, PhantomSlide(name, LESION, number, (1024, 768)))
    (folder / "c.svs").write_bytes(b"no slide")
    return folder


def test_parts_are_the_cohort_once() -> None:
    parts = [take_part(range(10), f"{k}/3") for k in (1, 2, 3)]
    assert sorted(chain(*parts)) == list(range(10))
    assert parts[0] == [0, 3, 6, 9]
    assert take_part(range(3), None) == [0, 1, 2]


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0"])
def test_a_part_that_is_none_is_refused(part: str) -> None:
    with pytest.raises(ConfigError, match="expected K/N with K from 1 to N"):
        take_part(range(3), part)


def test_more_parts_than_slides_are_refused() -> None:
    with pytest.raises(ConfigError, match="the cohort has 3 slides, so part 4 has none"):
        take_part(range(3), "4/5")


def test_parts_at_once_write_one_table(slides: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("predict", slides, "--bundle", bundle, "--out", out, "--device", "cpu")
    call = [sys.executable, "-m", "napari_lrmil", *map(str, words)]
    tasks = [subprocess.Popen([*call, "--part", f"{k}/3"], stderr=subprocess.PIPE) for k in (1, 2, 3)]
    codes = [(task.communicate()[1], task.returncode)[1] for task in tasks]
    assert codes == [0, 0, 3]
    with (out / "predictions.csv").open(encoding="utf-8-sig") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["a", "b"]
    with (out / "failures.csv").open(encoding="utf-8-sig") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["c.svs"]
    assert not (out / "cohort.json").exists()


def test_patients_are_not_answered_by_parts(call: Call, slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text(f"slide,patient\n{slides / 'a.tif'},p\n{slides / 'b.tif'},p\n")
    code, _, err = call("predict", table, "--by", "patient", "--part", "1/2", "--out", tmp_path / "out")
    assert code == 2
    assert "--by patient needs all slides of a patient" in err


def test_the_script_of_an_array(call: Call, tmp_path: Path) -> None:
    options = tmp_path / "slurm.yaml"
    options.write_text(
        "jobs: 8\ncores: 4\nmemory_mb: 8000\nwalltime: '02:00:00'\npartition: cpu\naccount: pathology\n"
        "python: /srv/lrmil/bin/python\nprologue: ['module load openslide']\ndirectives: ['--exclusive']\nlogs: logs\n"
    )
    words = ("predict", "my cohort.csv", "--out", "OUT", "--bundle", "hf:owner/name")
    code, out, _ = call("slurm", "--tasks", 20, "--options", options, "--", *words)
    assert code == 0
    assert out == (
        "#!/bin/bash\n"
        "#SBATCH --job-name=lrmil-predict\n"
        "#SBATCH --array=1-20%8\n"
        "#SBATCH --cpus-per-task=4\n"
        "#SBATCH --mem=8000M\n"
        "#SBATCH --time=02:00:00\n"
        "#SBATCH --partition=cpu\n"
        "#SBATCH --account=pathology\n"
        "#SBATCH --output=logs/lrmil-predict-%A_%a.log\n"
        "#SBATCH --exclusive\n"
        "\n"
        "# A task that was cut off continues where it ended: submit the same script again.\n"
        "set -eu\n"
        "module load openslide\n"
        "export NAPARI_LRMIL_THREADS=4 OMP_NUM_THREADS=4\n"
        "/srv/lrmil/bin/python -m napari_lrmil predict 'my cohort.csv' --out OUT --bundle hf:owner/name"
        ' --part "$SLURM_ARRAY_TASK_ID/20"\n'
    )


def test_a_training_is_one_job(call: Call) -> None:
    code, out, _ = call("slurm", "--", "train", "cohort.csv", "--out", "RUN", "--set", "stage1.epochs=6")
    assert code == 0
    assert "--array" not in out and "--part" not in out
    assert out.endswith("-m napari_lrmil train cohort.csv --out RUN --set stage1.epochs=6\n")
    assert "#SBATCH --output=lrmil-train-%j.log" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["view", "slide.svs"], "'view' is no command that runs as a job; expected one of predict, features, train"),
        (["predict", "x.csv", "--workers", "4"], "--workers contradicts a job script"),
        (["predict", "x.csv", "--part=1/2"], "--part=1/2 contradicts a job script"),
    ],
)
def test_what_cannot_be_a_job_is_refused(call: Call, words: list[str], sentence: str) -> None:
    code, _, err = call("slurm", "--", *words)
    assert code == 2
    assert sentence in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["predict", "x.csv", "--out", "OUT", "--teachr"], "No such option: --teachr"),
        (["predict", "--out", "OUT"], "Missing argument"),
        (["train", "x.csv"], "Missing option '--out'"),
        (["predict", "x.csv", "--out", "OUT", "--budget", "soon"], "Invalid value for '--budget'"),
    ],
)
def test_a_command_that_its_parser_refuses_is_refused_before_the_cluster_does(
    call: Call, words: list[str], sentence: str
) -> None:
    """With the sentence and code of the command itself, and without a script."""
    code, out, err = call("slurm", "--", *words)
    assert code == 2 and "#SBATCH" not in out
    assert sentence in " ".join(err.split())
    assert sentence in " ".join(call(*words)[2].split()), "the command says the same"


def test_an_input_that_is_not_here_is_named_beside_the_script(call: Call, slides: Path, tmp_path: Path) -> None:
    """Not refused: the cluster may see other folders."""
    missing = tmp_path / "no.csv"
    code, out, err = call("slurm", "--", "train", missing, "--out", tmp_path / "out")
    assert code == 0 and out.startswith("#!/bin/bash")
    assert "no.csv does not exist, seen from this folder; the job needs it" in " ".join(err.split())
    assert "does not exist" not in call("slurm", "--", "predict", slides, "--out", tmp_path / "out")[2]
    assert not (tmp_path / "out").exists(), "nothing ran"


@pytest.mark.skipif(os.name == "nt", reason="the script is for bash")
def test_a_task_of_the_script_runs(call: Call, slides: Path, bundle: Path, tmp_path: Path) -> None:
    """As SLURM would start it: bash, with the number of the task in the environment."""
    words = ("predict", slides, "--bundle", bundle, "--out", tmp_path / "out", "--device", "cpu")
    script = call("slurm", "--tasks", 3, "--", *words)[1]
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(["bash"], input=script, text=True, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"b"}
