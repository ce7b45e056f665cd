"""Step that predicts phantom slides with the options that the other steps leave out, on the device and on the CPU."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine_steps import cohort_table
from slide_steps import MAX_DIFFERENCE, drain
from steps import PROBLEM, Context
from training_options import VIT, balanced, share_patients, write_rows

from napari_lrmil.api import load_bundle, open_slide, predict, predict_patients
from napari_lrmil.core.encoders import AlignedEncoder, EncoderSpec, build_encoder
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.features.torch_encoding import encode
from napari_lrmil.core.inference.prediction import NetworkPrediction
from napari_lrmil.core.ladder.cascade import run_cascade
from napari_lrmil.core.ladder.climb import Climber, ClimbOptions
from napari_lrmil.core.ladder.rungs import Ladder, open_ladder
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import ConformalScores, ModelLimits, NetworkLimits
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

SLIDES = (2, 6)  # small, full: test slides of the cohort
CARD = {"name": "options", "classes": ("normal", "lesion"), "hr_mpp": 0.5, "hr_patch_px": 64, "lr_patch_px": 64}
COARSE, FINE = 4.0, 2.0  # µm per pixel of two students of one teacher
PATIENTS_OF_SETS = 20  # enough for a set at 90 %
ATTENTION = ", attention"
COUNTS = (1, 3, 5, 7, 12, 33)  # patches that are filled up to a power of two


@dataclass(frozen=True)
class Answers:
    """Probabilities by slide and network, shares of attention by the same and `ATTENTION`, and what was decided."""

    probabilities: Mapping[str, Mapping[str, float]]
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class Materials:
    """Slides and models of all rows."""

    context: Context
    slides: tuple[Path, ...]
    table: Path
    inked: Path
    students: tuple[Path, Path]
    one_bag: Path
    tokens: Path


Ask = Callable[[Materials, str, str], Answers]


def predict_with_options(context: Context) -> dict[str, Any]:
    """Predict with each of `ROWS` in float32 and with the runtime ``auto``, and compare with the CPU's float32.

    ``apart`` is the largest difference of a probability. Decisions and attention are compared in float32 alone: with
    ``auto`` a probability that lies at a limit may fall on its other side, and only the ranks of attention must agree.
    """
    materials, rows = _prepare(context), dict[str, Any]()
    for name, ask in ROWS.items():
        try:
            seconds, expected = _timed(partial(ask, materials, "cpu", "torch"))
            rows[f"{name}, cpu, torch"] = {"outcome": "done", "seconds": seconds, "apart": 0.0}
        except Exception as error:  # recorded: the other rows go on
            rows[f"{name}, cpu, torch"] = {"outcome": f"{type(error).__name__}: {error}"[:300]}
            continue
        for runtime in ("torch", "auto"):
            if (context.kind, runtime) != ("cpu", "torch"):
                rows[f"{name}, {context.kind}, {runtime}"] = _compare(materials, ask, runtime, expected)
    rows["numbers of patches"] = _compare_counts(context)
    failed = [name for name, row in rows.items() if row["outcome"] != "done"]
    return rows | ({PROBLEM: f"failed, or other answers than on the CPU: {'; '.join(failed)}"} if failed else {})


def _timed(work: Callable[[], Answers]) -> tuple[float, Answers]:
    began = time.perf_counter()
    answers = work()
    return time.perf_counter() - began, answers


def _compare(materials: Materials, ask: Ask, runtime: str, expected: Answers) -> dict[str, Any]:
    try:
        seconds, answers = _timed(partial(ask, materials, materials.context.kind, runtime))
    except Exception as error:  # recorded
        return {"outcome": f"{type(error).__name__}: {error}"[:300]}
    row = {
        "outcome": "done",
        "seconds": seconds,
        "apart": largest_difference(answers, expected, attention=runtime == "torch"),
    }
    if not row["apart"] <= MAX_DIFFERENCE:  # NaN too
        row["outcome"] = "other probabilities"
    elif runtime == "torch" and answers.decisions != expected.decisions:
        row["outcome"] = f"other decisions: {answers.decisions} and not {expected.decisions}"
    return row


def largest_difference(answers: Answers, expected: Answers, *, attention: bool) -> float:
    """Return the largest difference, with or without attention; infinite if other slides or networks answered."""
    own, others = answers.probabilities, expected.probabilities
    if {name: set(values) for name, values in own.items()} != {name: set(values) for name, values in others.items()}:
        return float("inf")
    names = [name for name in others if attention or not name.endswith(ATTENTION)]
    return float(np.max([abs(own[name][label] - value) for name in names for label, value in others[name].items()]))


# ---------------------------------------------------------------- slides and models


def _prepare(context: Context) -> Materials:
    """Write tables and models: the demo's networks at two resolutions, as of patients, and a random transformer."""
    folder = context.work / "options"
    shutil.rmtree(folder, ignore_errors=True)
    with cohort_table(context).open(newline="", encoding="utf-8") as file:
        rows = balanced(list(csv.DictReader(file)), "test", context.pick(*SLIDES))
    table = cohort_table(context).with_name("predicted.csv")
    share_patients(rows)
    write_rows(table, rows)
    demo, students = load_bundle("demo"), []
    for mpp in (COARSE, FINE):
        students.append(write_bundle(folder / f"at-{mpp:g}", CARD | {"lr_mpp": mpp}, demo.student, demo.teacher).path)
    one_bag = write_bundle(folder / "patients", CARD | {"lr_mpp": FINE, "bag": "patient"}, demo.student, demo.teacher)
    return Materials(
        context,
        tuple(table.parent / row["slide"] for row in rows),
        table,
        write_slide(folder, PhantomSlide("inked", LESION, 5, (2048, 1536)), variants=("pen",)),
        (students[0], students[1]),
        one_bag.path,
        _write_tokens(folder / "tokens").path,
    )


def _write_tokens(folder: Path) -> Bundle:
    """Write a model of two vision transformers, as foundation encoders are."""
    torch.manual_seed(0)
    student, teacher = (build_encoder(EncoderSpec("vit", VIT, "none", "vit")) for _ in range(2))
    heads = [GatedAttentionMIL(encoder.dim, 2) for encoder in (student, teacher)]
    low, high = StudentNetwork(AlignedEncoder(student, student.dim), heads[0]), TeacherNetwork(teacher, heads[1])
    return write_bundle(folder, CARD | {"lr_mpp": FINE}, low.eval(), high.eval())


# ---------------------------------------------------------------- rows


def _climb(materials: Materials, device: str, runtime: str) -> Answers:
    """Read every slide on all rungs of a ladder."""
    ladder, probabilities = open_ladder(materials.students, teacher=True), dict[str, Mapping[str, float]]()
    for path in materials.slides:
        with open_slide(path) as slide:
            climber = _climber(slide, ladder, device, runtime)
            for rung in ladder.rungs:
                probabilities |= _of_network(f"{path.name}, {rung.label}", drain(climber.read(rung)).network)
    return Answers(probabilities, _decide(probabilities))


def _climber(slide: Any, ladder: Ladder, device: str, runtime: str) -> Climber:
    return Climber(slide, ladder, ClimbOptions(resolve_device(device), runtime))


def _most_probable(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=lambda name: probabilities[name])


def _cascade(materials: Materials, device: str, runtime: str) -> Answers:
    """Climb only where the set of the coarse student leaves several classes; some slides do and some do not."""
    if (device, runtime) == ("cpu", "torch"):
        _write_sets(materials)
    ladder, probabilities, decisions = open_ladder(materials.students, teacher=True), {}, []
    for path in materials.slides:
        with open_slide(path) as slide:
            result, answer = drain(run_cascade(_climber(slide, ladder, device, runtime)))
            probabilities[path.name] = answer.figures.probabilities
            decisions.append(f"{_most_probable(answer.figures.probabilities)} by {answer.rung.label}")
            assert result.answer is answer.figures
    return Answers(probabilities, tuple(decisions))


def _write_sets(materials: Materials) -> None:
    """Give the students conformal scores in the middle of the widest gap between the coarse student's answers."""
    answers = [predict(path, materials.students[0], device="cpu", runtime="torch") for path in materials.slides]
    certain = sorted(max(answer.student.probabilities.values()) for answer in answers)
    low, high = max(pairwise(certain), key=lambda pair: pair[1] - pair[0])
    scores = ConformalScores(scores=((low + high) / 2,) * PATIENTS_OF_SETS, patients=tuple(range(PATIENTS_OF_SETS)))
    limits, demo = NetworkLimits(conformal=scores), load_bundle("demo")
    for path, mpp in zip(materials.students, (COARSE, FINE), strict=True):
        own = ModelLimits(student=limits, teacher=limits)
        write_bundle(path, CARD | {"lr_mpp": mpp}, demo.student, demo.teacher, own)


def _leave_out_ink(materials: Materials, device: str, runtime: str) -> Answers:
    """Predict a slide with a stroke of a pen, which is left out."""
    answer = predict(materials.inked, "demo", device=device, runtime=runtime, teacher="all", exclude_artefacts=True)
    return _of_networks({"inked": answer})


def _read_tokens(materials: Materials, device: str, runtime: str) -> Answers:
    """Predict with vision transformers."""
    answers = {
        path.name: predict(path, materials.tokens, device=device, runtime=runtime, teacher="all")
        for path in materials.slides
    }
    return _of_networks(answers)


def _of_networks(predictions: Mapping[str, Any]) -> Answers:
    """Return the answers of student and teacher."""
    probabilities = dict[str, Mapping[str, float]]()
    for name, prediction in predictions.items():
        probabilities |= _of_network(f"{name}, LR", prediction.student)
        probabilities |= _of_network(f"{name}, HR", prediction.teacher)
    return Answers(probabilities, _decide(probabilities))


def _decide(probabilities: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Return the most probable classes and the numbers of patches; equal attention has no first patch."""
    return tuple(
        f"{len(values)} patches" if name.endswith(ATTENTION) else _most_probable(values)
        for name, values in probabilities.items()
    )


def _of_network(name: str, network: NetworkPrediction) -> dict[str, Mapping[str, float]]:
    """Return probabilities and attention: the former alone can be so near to 0 and 1 that they would hide an error."""
    attention = {str(patch): float(share) for patch, share in enumerate(network.attention)}
    return {name: network.probabilities, f"{name}{ATTENTION}": attention}


def _ask_patients(bundle: str, materials: Materials, device: str, runtime: str) -> Answers:
    """Predict all slides of the patients; a share of the attention counts as a probability does."""
    out = materials.context.work / "options" / "patients-out"
    shutil.rmtree(out, ignore_errors=True)
    model = {"slides": materials.students[1], "one bag": materials.one_bag}[bundle]
    answers = predict_patients(materials.table, out, model, device=device, runtime=runtime)
    probabilities = {answer.patient: dict(answer.probabilities) for answer in answers}
    shares = {f"{answer.patient}{ATTENTION}": dict(answer.attention_shares) for answer in answers}
    return Answers(probabilities | shares, tuple(f"{a.predicted} of {len(a.slides)} slides" for a in answers))


ROWS: dict[str, Ask] = {
    "ladder": _climb,
    "cascade": _cascade,
    "artefacts left out": _leave_out_ink,
    "patients": partial(_ask_patients, "slides"),
    "patients as one bag": partial(_ask_patients, "one bag"),
    "transformers": _read_tokens,
}


# ---------------------------------------------------------------- numbers of patches


def _compare_counts(context: Context) -> dict[str, Any]:
    """Encode several numbers of patches, and compare embeddings with the CPU's; then time numbers that were new.

    ``slowest_ms`` is the longest call with 5, 6 or 7 patches after one with 8: on a GPU they share prepared kernels.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (max(COUNTS), 64, 64, 3), dtype=torch.uint8, generator=generator)
    encoders = {kind: load_bundle("demo").teacher.encoder.to(kind) for kind in ("cpu", context.kind)}

    def embed(kind: str, count: int) -> torch.Tensor:
        return encode(encoders[kind], pixels[:count], None, resolve_device(kind)).embedding.float().cpu()

    try:
        differences = [_relative(embed(context.kind, count), embed("cpu", count)) for count in COUNTS]
        milliseconds = []
        for count in (8, 5, 6, 7):
            began = time.perf_counter()
            embed(context.kind, count)
            milliseconds.append(1000 * (time.perf_counter() - began))
    except Exception as error:  # recorded
        return {"outcome": f"{type(error).__name__}: {error}"[:300]}
    is_close = max(differences) <= MAX_DIFFERENCE
    outcome = "done" if is_close else "other embeddings"
    return {"outcome": outcome, "apart": max(differences), "slowest_ms": max(milliseconds[1:])}


def _relative(embedding: torch.Tensor, expected: torch.Tensor) -> float:
    return float((embedding - expected).abs().max() / expected.abs().max())
