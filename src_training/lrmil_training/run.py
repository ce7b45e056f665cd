"""A training run is a folder: features, teacher, stage 1, student features, stage 2, evaluation, bundle."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrmil_training.bagfit import BagItem, distillation_loss, fit_mil, label_loss, seeded_mil, stage_seed
from lrmil_training.cohort import Cohort, CohortSlide, read_cohort, require_classes
from lrmil_training.config import TrainConfig, dump_config
from lrmil_training.evaluation import SlideResult, evaluate
from lrmil_training.export import export_bundle
from lrmil_training.features import FeatureRequest, find_encoder, make_features
from lrmil_training.fitting import FitPlan
from lrmil_training.losses import parent_scores
from lrmil_training.pairs import Standard, TaughtSlide, grid_from_bag, standard_of
from lrmil_training.stage1 import fit_stage1
from napari_lrmil.core.bag import Bag, read_bag
from napari_lrmil.core.encoders import AlignedEncoder, LoadedEncoder, require_layers, round_to_half
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Event, Finished, StageDone
from napari_lrmil.core.files import write_json, write_text
from napari_lrmil.core.mil import GatedAttentionMil
from napari_lrmil.core.predict import pool
from napari_lrmil.core.tables import write_failures

FEATURES, CHECKPOINTS, BUNDLE = "features", "checkpoints", "bundle"
EVENTS, METRICS, CONFIG = "events.jsonl", "metrics.json", "config.yaml"


@dataclass
class Run:
    """What the stages of one run share."""

    config: TrainConfig
    cohort: Cohort
    folder: Path
    device: torch.device
    encoder: LoadedEncoder
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Where stages leave their best state."""
        return self.folder / CHECKPOINTS

    def fit_plan(self, stage: str, settings: Any, ema: float = 0.0) -> FitPlan:
        """Return how to fit a stage."""
        patience = getattr(settings, "patience", settings.epochs)
        seed = stage_seed(self.config.seed, stage)
        return FitPlan(stage, settings.epochs, patience, seed, self.checkpoints, self.device, ema, self._key())

    def _key(self) -> str:
        """Return a hash of what every stage depends on: settings, encoder, and the slides that are learned from."""
        learned = [(s.name, s.patient, s.label, s.split) for side in ("train", "val") for s in self.cohort.of(side)]
        told = [dump_config(self.config), self.encoder.sha256, learned]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def hr_request(self) -> FeatureRequest:
        """Return the request for the teacher's features."""
        layers = self.config.stage1.layers if self.config.stage1.lambda_layer > 0 else ()
        return FeatureRequest(
            encoder=self.encoder.encoder,
            encoder_name=self.encoder.spec.name,
            encoder_sha256=self.encoder.sha256,
            plan=self.config.plan,
            high=True,
            folder=self.folder / FEATURES,
            layers=layers,
        )

    def lr_request(self, encoder: AlignedEncoder, name: str) -> FeatureRequest:
        """Return the request for LR features by a frozen encoder; its weights' hash tells epochs of it apart."""
        return FeatureRequest(
            encoder=encoder,
            encoder_name=name,
            encoder_sha256=weights_sha256(encoder),
            plan=self.config.plan,
            high=False,
            folder=self.folder / FEATURES,
            input_px=self.config.student_input_px,
        )


def weights_sha256(module: nn.Module) -> str:
    """Return a hash of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(cohort_csv: Path, out: Path, config: TrainConfig, device: torch.device) -> Iterator[Event]:
    """Train teacher and student and write the run folder; features that are there already are used again.

    Yields the events of every stage, which also go to ``events.jsonl``, and last `Finished` with the run folder.

    Raises
    ------
    LrmilError
        Where cohort, configuration or encoder cannot be used, or a class is left without slides.
    """
    run = _prepare(cohort_csv, out, config, device)
    with (out / EVENTS).open("a", encoding="utf-8") as log:
        for sequence, event in enumerate(_stages(run)):
            log.write(json.dumps({"seq": sequence, "time": time.time(), **event_json(event)}) + "\n")
            log.flush()
            yield event


def event_json(event: Event) -> dict[str, Any]:
    """Return an event as one line of ``events.jsonl`` has it."""
    values = {k: v for k, v in event.__dict__.items() if k != "error"}
    if isinstance(event, Finished):
        values = {"result": str(event.result)}
    return {"event": type(event).__name__, **values}


def _prepare(cohort_csv: Path, out: Path, config: TrainConfig, device: torch.device) -> Run:
    """Check everything that can be checked before any work, so that nothing half-written is left by a wrong call."""
    cohort = read_cohort(cohort_csv, seed=config.seed)
    require_classes(cohort, ("train", "val"))
    encoder = find_encoder(config.encoder.teacher)
    require_layers(encoder.encoder, config.stage1.layers)
    stored = out / CONFIG
    text = dump_config(config)
    if stored.exists() and stored.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{out}: the folder holds a run with another configuration; choose another --out, or delete it"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_text(stored, text)
    return Run(config, cohort, out, device, encoder)


def _stages(run: Run) -> Generator[Event, None, None]:
    bags = yield from _hr_features(run)
    standard, layer_standards = _standards(run, bags)
    teacher = yield from _teacher(run, bags, standard)
    taught = _taught(run, bags, teacher, standard, layer_standards)
    student = yield from _stage1(run, taught, standard)
    lr_bags = yield from _lr_features(run, student, "student")
    student_mil = yield from _stage2(run, taught, lr_bags, teacher)
    results = {
        "teacher": _read_teacher(run, taught),
        "student": _read_lr(run, taught, lr_bags, student_mil),
    }
    if "labels_only" in run.config.baselines:
        results["labels_only"] = yield from _labels_only(run, taught, standard)
    began = time.perf_counter()
    metrics = evaluate(run.cohort, results, run.config.bootstrap)
    write_json(run.folder / METRICS, metrics)
    yield StageDone("evaluation", time.perf_counter() - began)
    encoders = {"teacher": run.encoder.encoder, "student": student}
    mils = {"teacher": teacher, "student": student_mil}
    export_bundle(run.folder / BUNDLE, run.config, run.cohort, encoders, mils, results, metrics)
    yield Finished(run.folder)


# ---------------------------------------------------------------- features


def _hr_features(run: Run) -> Generator[Event, None, dict[str, Bag]]:
    request = run.hr_request()
    run.encoder.encoder.to(run.device)
    run.failures |= yield from make_features(run.cohort.slides, request, run.device)
    write_failures(run.folder, "features", run.failures, {s.name for s in run.cohort.slides})
    run.cohort = run.cohort.without(set(run.failures))
    require_classes(run.cohort, ("train", "val"))
    return {s.name: read_bag(request.path(s)) for s in run.cohort.slides}


def _lr_features(run: Run, encoder: AlignedEncoder, name: str) -> Generator[Event, None, dict[str, Bag]]:
    request = run.lr_request(encoder.to(run.device), name)
    failures = yield from make_features(run.cohort.slides, request, run.device)
    if failures:
        slide, reason = next(iter(failures.items()))
        raise CohortError(run.cohort.path, f"slide {slide} gave HR but no LR features ({reason})")
    encoder.cpu()
    return {s.name: read_bag(request.path(s)) for s in run.cohort.slides}


def _standards(run: Run, bags: dict[str, Bag]) -> tuple[Standard, dict[str, Standard]]:
    """Return the teacher's training statistics of embeddings and of each layer."""
    train = [bags[s.name] for s in run.cohort.of("train")]
    layers = {name: standard_of([b.layers[name] for b in train]) for name in run.hr_request().layers}
    return standard_of([b.features for b in train]), layers


# ---------------------------------------------------------------- stages


def _teacher(run: Run, bags: dict[str, Bag], standard: Standard) -> Generator[Event, None, GatedAttentionMil]:
    items = _sides(run, lambda s: BagItem(torch.from_numpy(bags[s.name].features), run.cohort.target(s)))
    settings = run.config.teacher
    plan = run.fit_plan("teacher", settings, settings.ema)
    mil = seeded_mil(run.encoder.encoder.dim, len(run.cohort.classes), settings.hidden, plan.seed)
    mil.set_standard(standard.mean, standard.deviation)
    return (yield from _rounded(fit_mil(mil, label_loss, items, settings, plan)))


def _rounded(
    fitting: Generator[Event, None, GatedAttentionMil],
) -> Generator[Event, None, GatedAttentionMil]:
    """Round what was fitted to what the bundle will hold, so that what is measured is what is shared."""
    mil = yield from fitting
    round_to_half(mil)
    return mil


def _sides(run: Run, item: Callable[[CohortSlide], BagItem]) -> dict[str, list[BagItem]]:
    return {side: [item(s) for s in run.cohort.of(side)] for side in ("train", "val")}


def _taught(
    run: Run, bags: dict[str, Bag], teacher: GatedAttentionMil, standard: Standard, layers: dict[str, Standard]
) -> dict[str, TaughtSlide]:
    """Return slide name -> what the frozen teacher says of it."""
    taught = {}
    for row in run.cohort.slides:
        bag = bags[row.name]
        pooled = pool(teacher, bag.features, torch.device("cpu"))
        taught[row.name] = TaughtSlide(
            row=row,
            grid=grid_from_bag(bag, run.config.plan.n),
            targets=standard.apply(bag.features),
            layers={name: one.apply(bag.layers[name]) for name, one in layers.items()},
            scores=torch.from_numpy(pooled.scores),
            logits=torch.from_numpy(pooled.logits),
        )
    return taught


def _stage1(run: Run, taught: dict[str, TaughtSlide], standard: Standard) -> Generator[Event, None, AlignedEncoder]:
    student = fresh_student(run, standard)
    if run.config.stage1.epochs > 0:
        sides = {side: [taught[s.name] for s in run.cohort.of(side)] for side in ("train", "val")}
        student = yield from fit_stage1(student, sides, run.config, run.fit_plan("stage1", run.config.stage1))
    round_to_half(student)
    return student


def fresh_student(run: Run, standard: Standard) -> AlignedEncoder:
    """Return the student before distillation: a copy of the teacher's encoder, or another network from a file."""
    name = run.config.encoder.student
    source = run.encoder if name == "teacher" else find_encoder(name)
    copy = type(source.encoder)(source.spec)
    copy.load_state_dict(source.encoder.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(run.config.seed, "student"))
        student = AlignedEncoder(copy, run.encoder.encoder.dim)
    student.set_standard(standard.mean, standard.deviation)
    return student.eval()


def _stage2(
    run: Run, taught: dict[str, TaughtSlide], lr_bags: dict[str, Bag], teacher: GatedAttentionMil
) -> Generator[Event, None, GatedAttentionMil]:
    settings = run.config.stage2
    plan = run.fit_plan("stage2", settings, settings.ema)
    mil = seeded_mil(teacher.dim, teacher.classes, teacher.hidden, plan.seed)
    if settings.init != "fresh":  # student instances come standardised, so the teacher's own statistics stay behind
        mil.load_state_dict(teacher.state_dict() | {"mean": mil.mean, "deviation": mil.deviation})
    if settings.init == "frozen_head":
        return mil.eval().requires_grad_(False)

    def item(s: CohortSlide) -> BagItem:
        t = taught[s.name]
        scores = parent_scores(
            t.scores, torch.from_numpy(t.grid.parent), len(t.grid.lr_index), settings.attention_transfer
        )
        return BagItem(torch.from_numpy(lr_bags[s.name].features), run.cohort.target(s), t.logits, scores)

    return (yield from _rounded(fit_mil(mil, distillation_loss(settings), _sides(run, item), settings, plan)))


def _labels_only(
    run: Run, taught: dict[str, TaughtSlide], standard: Standard
) -> Generator[Event, None, list[SlideResult]]:
    """Train the baseline: the undistilled encoder, frozen, on LR patches, and a MIL on labels alone."""
    encoder = fresh_student(run, standard)
    bags = yield from _lr_features(run, encoder, "labels_only")
    settings = run.config.teacher
    plan = run.fit_plan("labels_only", settings, settings.ema)
    mil = seeded_mil(encoder.dim, len(run.cohort.classes), settings.hidden, plan.seed)
    items = _sides(run, lambda s: BagItem(torch.from_numpy(bags[s.name].features), run.cohort.target(s)))
    mil = yield from fit_mil(mil, label_loss, items, settings, plan)
    return _read_lr(run, taught, bags, mil)


# ---------------------------------------------------------------- results


def _read_teacher(run: Run, taught: dict[str, TaughtSlide]) -> list[SlideResult]:
    found = []
    for s in run.cohort.slides:
        t = taught[s.name]
        found.append(SlideResult(s, t.grid, t.logits.numpy(), torch.softmax(t.scores, 0).numpy(), high=True))
    return found


def _read_lr(
    run: Run, taught: dict[str, TaughtSlide], bags: dict[str, Bag], mil: GatedAttentionMil
) -> list[SlideResult]:
    found = []
    for s in run.cohort.slides:
        pooled = pool(mil, bags[s.name].features, torch.device("cpu"))
        found.append(SlideResult(s, taught[s.name].grid, pooled.logits, pooled.attention, high=False))
    return found
