"""Model of a call, opened and checked before any slide: in this process, or in one that was forked for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.cli.cohort_options import ExecutionOptions
from napari_lrmil.cli.console import load_networks
from napari_lrmil.core.atomic_files import require_writable

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from napari_lrmil.core.cohort import SlideTask
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches

PREDICT_IMPORTS = "napari_lrmil.core.cohort.predict_imports"  # modules of the workers


@dataclass(frozen=True)
class CheckedModel:
    """A bundle that was found to be whole.

    Attributes
    ----------
    path, sha256
        Its folder and hash.
    notices
        Notices that were printed.
    """

    path: Path
    sha256: str
    notices: set[str]

    def task(self, bundle: str, folder: Path, options: Mapping[str, Any]) -> SlideTask:
        """Return the task of a cohort: `bundle` as the caller named it, folder of the results, further arguments."""
        from napari_lrmil.core.cohort.worker_task import WorkerTask

        arguments = {"bundle": self.path, "bundle_sha256": self.sha256, "bundle_name": str(bundle), "folder": folder}
        arguments = {**arguments, **options}
        return WorkerTask("napari_lrmil.core.cohort.predict_task", "PredictTask", arguments, (PREDICT_IMPORTS,))


def check_model(
    bundle: str, execution: ExecutionOptions, reader: str, runtime: str, patches: TeacherPatches, folder: Path
) -> CheckedModel:
    """Return a model that this process has loaded, after checks of options and of the folder of results."""
    from napari_lrmil.core.slides.tile_reader import require_reader

    require_reader(reader)
    require_available(execution, runtime)
    require_writable(folder)
    return load_model(bundle, patches, execution.load_device, runtime)


def check_model_apart(bundle: str, execution: ExecutionOptions, reader: str, runtime: str) -> CheckedModel | None:
    """Return a model that a process forked for that has loaded, or None if it must be checked in this process.

    This process then imports neither NumPy nor OpenVINO: it only watches the workers, which have them already.
    """
    from napari_lrmil.core.processes import Child, ChildEndedError

    child = Child("model", _send_model, bundle, execution, reader, runtime, shared_imports=(PREDICT_IMPORTS,))
    try:
        model: CheckedModel | None = child.receive()
    except ChildEndedError:
        return None
    finally:
        child.close()
    return model


def _send_model(pipe: Connection, bundle: str, execution: ExecutionOptions, reader: str, runtime: str) -> None:
    """Check a model and options in a forked process, and send the model, or None for what is wrong with them."""
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.slides.tile_reader import require_reader

    try:
        require_reader(reader)
        require_available(execution, runtime)
        model = load_model(bundle, TeacherPatches.NONE, execution.load_device, runtime)
    except Exception:  # the parent repeats the checks, and raises the error with its traceback
        pipe.send(None)
    else:
        pipe.send(model)


def load_model(bundle: str, patches: TeacherPatches, device: str, runtime: str) -> CheckedModel:
    """Return a bundle with its networks loaded or checked.

    A broken bundle must end the command: as an error of each slide it would be reported once per slide.
    """
    from napari_lrmil.core.cohort.predict_task import open_bundle_once
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.core.models.bundle import Bundle

    opened = Bundle(bundle)
    _ = opened.limits  # damaged ones would fail every slide
    _ = opened.embedding_statistics  # damaged ones would fail every slide
    model = open_bundle_once(opened.path.absolute(), opened.sha256)  # the object that tasks in this process use
    notices = load_networks(model, teacher=patches != TeacherPatches.NONE, device=device, runtime=runtime)
    return CheckedModel(model.path, model.sha256, notices)


def require_available(execution: ExecutionOptions, runtime: str) -> None:
    """Raise `ConfigError` if this machine lacks the device or runtime. For a cluster only their names are checked."""
    from napari_lrmil.core.features.devices import resolve_device
    from napari_lrmil.core.runtimes.select import require_runtime

    execution.require_device()
    require_runtime(runtime, None if execution.is_remote else resolve_device(execution.device))
