"""Cohorts on a cluster: dying dask workers, a missing scheduler, SLURM jobs."""

from __future__ import annotations

import _thread
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from napari_lrmil.core.cohort import Backend, BackendChoice, CohortProgress, SlideJob, choose_backend, run_cohort
from napari_lrmil.core.cohort.predict_task import PredictTask
from napari_lrmil.core.cohort.task import SerialBackend
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Notice
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from support.cohort_tasks import (
    GIVEN_UP,
    KillsItsWorker,
    Logged,
    count_computed,
    finished_slides,
    make_jobs,
    run_to_end,
)
from support.networks import untrained_bundle


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Return a local dask cluster of two workers that are processes."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0", silence_logs=50
        ) as local,
    ):
        yield local


def on(cluster: Any) -> Backend:
    return choose_backend(BackendChoice(scheduler=cluster.scheduler_address), slides=9)


def test_a_cluster_finishes_although_workers_die(cluster: Any, tmp_path: Path) -> None:
    """As with local processes: a slide that kills its workers fails, and the others on them do not."""
    slides = make_jobs("a", "dies once", "b", "fails once", "no mpp", "c", "dies always")
    progress, events = run_to_end(slides, Logged(tmp_path), on(cluster))
    assert finished_slides(tmp_path) == {"a", "b", "c", "dies once", "fails once"}
    assert count_computed(tmp_path) == {
        "a": 1, "b": 1, "c": 1, "dies once": 2, "fails once": 2, "no mpp": 1, "dies always": 2,
    }  # fmt: skip
    assert [row[:2] for row in progress.rows] == [("no mpp.svs", "open"), ("dies always.svs", "worker")]
    assert re.fullmatch(r"the worker tcp://\S+ was lost while it had this slide, .*", progress.rows[1][2])
    assert any(isinstance(event, Notice) for event in events)
    assert (tmp_path / "threads").read_text() == "2"  # the worker's own, for one slide at a time
    assert "dask cluster at tcp://" in on(cluster).text


def test_predictions_of_a_cluster_whose_worker_was_killed_are_those_of_single_runs(
    cluster: Any, tmp_path: Path
) -> None:
    """Probabilities equal to 1e-5; each slide is computed once."""
    paths = [write_slide(tmp_path / "slides", PhantomSlide(f"s{i}", LESION, i, (1536, 1024))) for i in range(3)]
    slides = [SlideJob(path) for path in paths]
    bundle = untrained_bundle(tmp_path / "bundle")

    def task(out: str, sha256: str) -> PredictTask:
        return PredictTask(
            bundle=bundle.path, bundle_sha256=sha256, bundle_name="b", folder=tmp_path / out, device="cpu"
        )

    run_to_end(slides, task("single", bundle.sha256), SerialBackend())
    (tmp_path / "log").touch()
    killing = KillsItsWorker(task("cluster", bundle.sha256), "s1", tmp_path)
    progress, _ = run_to_end(slides, killing, on(cluster))
    assert (progress.done, progress.rows) == (3, []) and (tmp_path / "seen").exists()
    assert count_computed(tmp_path) == {"s0": 1, "s1": 1, "s2": 1}
    for path in paths:
        single, cluster_wide = (
            json.loads((tmp_path / out / path.stem / "prediction.json").read_text()) for out in ("single", "cluster")
        )
        assert single["probabilities"] == pytest.approx(cluster_wide["probabilities"], abs=1e-5)
    progress, _ = run_to_end(slides, killing, SerialBackend())
    assert (progress.done, progress.reused) == (0, 3) and count_computed(tmp_path).total() == 3


def test_workers_abandon_cancelled_slides(cluster: Any, tmp_path: Path) -> None:
    """As after Ctrl-C: a restart must not compete with a worker that goes on with its slide."""

    def interrupt() -> None:
        while not (count_computed(tmp_path)["ticks 1"] and "a" in finished_slides(tmp_path)):
            time.sleep(0.02)
        _thread.interrupt_main()

    stream = run_cohort(make_jobs("a", "ticks 1", "ticks 2"), Logged(tmp_path), on(cluster), CohortProgress())
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    ticking = [
        name for name in count_computed(tmp_path) if name != "a"
    ]  # one slide, or two: the other worker may be starting
    while not all((tmp_path / f"{name}.{GIVEN_UP}").exists() for name in ticking):
        assert finished_slides(tmp_path) == {"a"}
        time.sleep(0.02)
    assert finished_slides(tmp_path) == {"a"}


def test_a_scheduler_that_is_not_there_is_a_wrong_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from napari_lrmil.core.cohort import dask_cluster as module

    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.5)
    backend = choose_backend(BackendChoice(scheduler="tcp://127.0.0.1:9"), slides=2)
    with pytest.raises(ConfigError, match="it is not an address such as"):
        run_to_end(make_jobs("a", "b"), Logged(tmp_path), choose_backend(BackendChoice(scheduler="nonsense"), slides=2))
    with pytest.raises(ConfigError, match="no dask scheduler answers at"):
        run_to_end(make_jobs("a"), Logged(tmp_path), backend)
    for choice in (BackendChoice(2, "tcp://127.0.0.1:9"), BackendChoice(None, "tcp://127.0.0.1:9", 500)):
        with pytest.raises(ConfigError, match="where they are started"):
            choose_backend(choice, slides=2)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for missing, scheduler in (("distributed", "tcp://h:1"), ("dask_jobqueue", "slurm")):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ConfigError, match=re.escape('pip install "napari-lrmil[distributed]"')):
            run_to_end(make_jobs("a"), Logged(tmp_path), choose_backend(BackendChoice(scheduler=scheduler), slides=2))


# ---------------------------------------------------------------- SLURM

GOLDEN = """\
#!/usr/bin/env bash

#SBATCH -J napari-lrmil
#SBATCH -e logs/napari-lrmil-%J.err
#SBATCH -o logs/napari-lrmil-%J.out
#SBATCH -p gpu
#SBATCH -A pathology
#SBATCH -n 1
#SBATCH --cpus-per-task=8
#SBATCH --mem=15G
#SBATCH -t 08:00:00
#SBATCH --gres=gpu:1
#SBATCH --exclusive
module load openslide
source .venv/bin/activate
python -m distributed.cli.dask_worker ADDRESS --name dummy-name --nthreads 8 --memory-limit 14.90GiB --nanny \
--death-timeout 60
"""


def test_the_script_of_a_job_is_the_golden_one(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    from napari_lrmil.core.cohort.slurm import job_script, read_slurm_options

    file = tmp_path / "slurm.yaml"
    file.write_text(
        "partition: gpu\naccount: pathology\ncores: 8\nmemory_mb: 16000\nwalltime: '08:00:00'\ngpu: true\n"
        "python: python\nlogs: logs\ndirectives: [--exclusive]\n"
        "prologue: [module load openslide, source .venv/bin/activate]\n"
    )
    script = job_script(read_slurm_options(file))
    assert re.sub(r"tcp://\S+", "ADDRESS", script) == GOLDEN


def test_options_of_jobs_come_from_a_file_and_from_the_call(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    from napari_lrmil.core.cohort.dask_cluster import SlurmJobs

    file = tmp_path / "slurm.yaml"
    file.write_text("jobs: 8\npartition: long\n")
    backend = choose_backend(BackendChoice(3, f"slurm:{file}", 2000), slides=99)
    assert isinstance(backend, SlurmJobs)
    assert (backend.options.jobs, backend.options.partition, backend.options.memory_mb) == (3, "long", 2000)
    for content, expected in (("queue: long", "queue"), ("jobs: many", "jobs"), ("- a", "YAML"), ("a: [", "YAML")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=expected):
            choose_backend(BackendChoice(scheduler=f"slurm:{file}"), slides=2)


SBATCH = """\
#!/bin/sh
echo sbatch >> {folder}/calls
cp "$1" {folder}/job.$$
setsid sh {folder}/job.$$ > /dev/null 2>&1 &
echo $! >> {folder}/pids
echo "Submitted batch job $!"
"""
SCANCEL = """\
#!/bin/sh
echo scancel >> {folder}/calls
kill -- -$1
"""


@pytest.mark.skipif(shutil.which("setsid") is None, reason="a batch system of two shell scripts needs setsid")
def test_ended_jobs_are_submitted_again_and_all_are_cancelled_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scripts replace SLURM; the first job ends with its first slide, as by its time limit."""
    pytest.importorskip("dask_jobqueue")
    import dask

    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(text.format(folder=tmp_path))
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("GROUP_OF_TESTS", str(os.getpgrp()))
    file = tmp_path / "slurm.yaml"
    file.write_text("jobs: 1\ncores: 3\nmemory_mb: 2000\ninterface: lo\n")
    backend = choose_backend(BackendChoice(scheduler=f"slurm:{file}"), slides=9)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        progress, _ = run_to_end(make_jobs("job ends once", "a"), Logged(tmp_path), backend)
    assert (progress.done, progress.retried, progress.rows) == (2, 1, [])
    assert count_computed(tmp_path) == {"a": 1, "job ends once": 2}
    assert (tmp_path / "threads").read_text() == "3"
    assert (tmp_path / "calls").read_text().split().count("sbatch") == 2
    assert backend.text == "SLURM, 1 jobs of 3 cores and 2000 MB, at most 1 at once"
    left = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    while any(psutil.pid_exists(pid) for pid in left):  # the timeout of tests ends this one where they stay
        time.sleep(0.05)


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a self-signed certificate, which is its own authority, and its key, by the names of dask's variables."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    call = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=cluster"]
    subprocess.run([*call, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {"ca-file": cert, "client.cert": cert, "client.key": key}


def tls_settings(files: dict[str, str]) -> dict[str, str]:
    return {f"distributed.comm.tls.{name}": file for name, file in files.items()}


def test_an_encrypted_scheduler_is_used_with_the_certificates_of_dasks_configuration(
    certificates: dict[str, str], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    cert, key = certificates["client.cert"], certificates["client.key"]
    files = {f"tls_{role}_{kind}": file for role in ("scheduler", "worker", "client")
             for kind, file in (("cert", cert), ("key", key))}  # fmt: skip
    security = distributed.Security(require_encryption=True, tls_ca_file=cert, **files)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50,
        protocol="tls://", security=security,
    ) as local:  # fmt: skip
        assert local.scheduler_address.startswith("tls://")
        with dask.config.set(tls_settings(certificates)):
            run_to_end(make_jobs("a", "b"), Logged(tmp_path), on(local))
        assert finished_slides(tmp_path) == {"a", "b"}
        with pytest.raises(ConfigError, match="asks for certificates, which are not set") as caught:
            run_to_end(make_jobs("c"), Logged(tmp_path), on(local))
        assert "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY" in str(caught.value)


def test_a_certificate_that_cannot_be_read_is_named_before_any_work(
    certificates: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for file in (broken, tmp_path / "missing.pem"):
        settings = tls_settings(certificates | {"client.cert": str(file)})
        choice = choose_backend(BackendChoice(scheduler="tls://127.0.0.1:9"), slides=1)
        with dask.config.set(settings), pytest.raises(ConfigError, match="certificates cannot be read") as caught:
            run_to_end(make_jobs("a"), Logged(tmp_path), choice)
        assert file.name in str(caught.value)
