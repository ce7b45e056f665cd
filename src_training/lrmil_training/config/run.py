"""Configuration of a training run, and the choices that do not go together.

The text below each field states meaning and unit and the reason for its default. The window shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lrmil_training.config.fields import MAX_COUNT, MAX_RUNS, MAX_SEED, Fields
from lrmil_training.config.sections import (
    EncoderConfig,
    OperatingPointConfig,
    SelectionConfig,
    SplitConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    StainConfig,
    TeacherConfig,
)
from napari_lrmil.core.encoders.spec import ABSENT
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.models.card import (
    CLAM_SB,
    GATED,
    MAX_NAME,
    MAX_SIDE_PX,
    OF_STUDENTS,
    PUBLISHED,
    TRANSMIL,
    Aggregator,
)
from napari_lrmil.core.patching.tissue import TissueConfig

MIN_FOLDS = 3  # one each for test, validation and training
Baseline = Literal["labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both"]
UNDISTILLED_BASELINES: tuple[Baseline, ...] = ("labels_only",)  # those that a run without a teacher can train


class TrainConfig(Fields):
    """A training run."""

    name: str = Field("lrmil", min_length=1, max_length=MAX_NAME)
    """Name of the bundle."""
    about: str = Field("", max_length=10_000)
    """Text for the card of the bundle: what it is, and what it is not."""
    intended_use: str = Field("", max_length=MAX_NAME)
    """A few words for lists of models: stain, organ and question, as in "breast H&E: invasive carcinoma"."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of weights, sample order and augmentation."""
    seeds: int = Field(1, ge=1, le=MAX_RUNS)
    """Number of runs, with seed, seed + 1, …; figures of one seed are partly luck."""
    folds: int = Field(0, ge=0, le=MAX_RUNS)
    """0: the cohort's fixed split. k: every patient is tested once in k runs."""
    distil: bool = True
    """Distil an HR teacher into the student. False, or train --no-teacher: the student learns from labels alone, end
    to end by stage 3; no HR patch is read, and hr_mpp and hr_patch_px are ignored."""
    by_site: bool = False
    """Keep the slides of a site in one fold; needs the column site."""
    hr_mpp: float = Field(0.5, ge=0.01, le=1000)
    """Resolution of the teacher's patches, µm per pixel: 20x."""
    lr_mpp: float = Field(2.0, ge=0.01, le=1000)
    """Resolution of the student's patches, µm per pixel: 5x."""
    hr_patch_px: int = Field(256, ge=32, le=MAX_SIDE_PX)
    """Side of an HR patch in pixels."""
    lr_patch_px: int = Field(256, ge=32, le=MAX_SIDE_PX)
    """Side of an LR patch in pixels."""
    student_input_px: int | None = Field(None, ge=32, le=MAX_SIDE_PX)
    """Side in pixels to which LR patches are enlarged; None leaves them as read."""
    encoder: EncoderConfig = EncoderConfig()
    """Networks that encode patches."""
    exclude_artefacts: bool = False
    """Leave pen, air bubbles and blur out of the tissue, in training and then in every prediction of the model.
    Folds stay. Presets default and paper do; runs and files without the key do not, nor does demo, of phantoms."""
    stain: StainConfig = StainConfig()
    """Colour of the patches."""
    split: SplitConfig = SplitConfig()
    """Slides that are set aside."""
    operating_point: OperatingPointConfig = OperatingPointConfig()
    """Operating point of a model of two classes."""
    teacher: TeacherConfig = TeacherConfig()
    """The HR teacher's MIL."""
    selection: SelectionConfig = SelectionConfig()
    """Choice of the teacher's recipe by an inner cross-validation."""
    stage1: Stage1Config = Stage1Config()
    """Patch-level distillation."""
    stage2: Stage2Config = Stage2Config()
    """Slide-level distillation."""
    stage3: Stage3Config = Stage3Config()
    """End-to-end fine-tuning of the student's encoder through its MIL."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """Balanced: classes weigh in the label term by inverse frequency, so that rare classes count."""
    sampling: Literal["slide", "patient"] = "slide"
    """Training samples of the teacher and of stages 2 and 3. Patient: every patient is drawn equally often, so that
    those with many slides do not dominate; an epoch has as many steps as before."""
    bag: Literal["slide", "patient"] = "slide"
    """What has a label. Patient: all patches of a patient's slides are one bag, in the teacher, stages 2 and 3, the
    baselines, and predictions by patient; patches_per_slide then counts the patches of a bag. For gated_attention."""
    lambda_patch: float = Field(0.0, ge=0, le=1000)
    """Weight of the patch term where lesion outlines lie beside slides: each patch's class scores against its share of
    lesion, in the teacher, stages 1 to 3 and the labels-only baselines alike. 0: outlines do not teach."""
    baselines: tuple[Baseline, ...] = ("labels_only",)
    """Other LR methods to train. Labels_only is what distillation must beat: a frozen encoder and labels alone."""
    compare: tuple[Aggregator, ...] = ()
    """Further HR teachers to train on the same features and to compare with teacher and students, by aggregator; all
    stands for the six published ones. They are not distilled."""
    ablation: bool = False
    """Also train the student without each loss term in turn."""
    bootstrap: int = Field(2000, ge=100, le=MAX_COUNT)
    """Bootstrap resamples of every interval."""
    features: Path | None = None
    """Folder of HR features that several runs can share; None: in the run folder."""
    hr_features: Path | None = None
    """Folder of HR features that TRIDENT, CLAM, STAMP, Slideflow, LazySlide or this program made: they are read in
    place of HR patches, and never written to. None: HR patches are encoded."""
    hr_mapping: tuple[str, ...] = ()
    """What files of hr_features do not say of themselves, such as features=feats, coords=xy, patch_level0=512."""
    hr_check: int = Field(4, ge=0, le=MAX_COUNT)
    """Patches of each slide of hr_features that are encoded again; a cosine below 0.99 refuses the slide. 0: none."""
    devices: int = Field(1, ge=1, le=MAX_RUNS)
    """Number of processes that train together; gradients are averaged over them."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Auto: bf16 on GPUs that support it, where it is twice as fast, otherwise fp32."""
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()
    """Loggers of metrics in addition to events.jsonl, which is always written."""

    @field_validator("compare", mode="before")
    @classmethod
    def _expand_all(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        return PUBLISHED if isinstance(names, list | tuple) and list(names) == ["all"] else value

    @field_validator("compare")
    @classmethod
    def _drop_repeated(cls, names: tuple[Aggregator, ...]) -> tuple[Aggregator, ...]:
        return tuple(dict.fromkeys(names))

    @field_validator("name", "features", "hr_features")
    @classmethod
    def _require_printable(cls, value: str | Path | None) -> str | Path | None:
        if value is not None and not str(value).isprintable():
            raise ValueError("expected printable characters, on one line")
        return value

    @field_validator("features", "hr_features")
    @classmethod
    def _refuse_truth_values(cls, folder: Path | None) -> Path | None:
        if str(folder).lower() in ("yes", "no", "on", "off"):
            raise ValueError(f"expected a folder; leave the key out for none, or write ./{folder} for a folder")
        return folder

    @field_validator("folds")
    @classmethod
    def _require_enough_folds(cls, folds: int) -> int:
        if 0 < folds < MIN_FOLDS:
            raise ValueError(f"{folds} folds leave nothing to learn from; take {MIN_FOLDS} or more, or 0 for the split")
        return folds

    @model_validator(mode="after")
    def _require_a_term_in_stage3(self) -> TrainConfig:
        s = self.stage2
        has_term = any((s.lambda_ce, s.lambda_bag, s.lambda_soft, s.lambda_hard))
        if self.distil and self.stage3.epochs and self.stage3.keep_stage2_terms and not has_term:
            raise ValueError(
                "stage 3 keeps the terms of stage 2, whose every weight is 0; raise one of stage2.lambda_ce, "
                "lambda_bag, lambda_soft, lambda_hard, or set stage3.keep_stage2_terms=false"
            )
        return self

    @model_validator(mode="after")
    def _require_one_source_of_layers(self) -> TrainConfig:
        if self.selection.layers and self.encoder.teacher_layers:
            named = "+".join(self.encoder.teacher_layers)
            raise ValueError(
                f"selection.layers chooses the layers, and encoder.teacher_layers names {named}; leave "
                "teacher_layers out, and add them to selection.layers if they are a candidate"
            )
        return self

    @model_validator(mode="after")
    def _require_attention_across_slides(self) -> TrainConfig:
        aggregators = {
            "teacher.aggregator": (self.teacher.aggregator,),
            "selection.aggregators": self.selection.aggregators,
            "compare": self.compare,
        }
        refused = [(key, name) for key, names in aggregators.items() for name in names if name != GATED]
        if self.bag == "patient" and refused:
            key, name = refused[0]
            raise ValueError(
                f"bag: patient joins slides by their attention, by which {name} in {key} does not pool; "
                "use gated_attention there, or set bag=slide"
            )
        return self

    @model_validator(mode="after")
    def _require_aggregators_that_fit(self) -> TrainConfig:
        names = (*self.selection.aggregators, self.teacher.aggregator)
        nonlinear = next((name for name in (*names, *self.compare) if name in (CLAM_SB, TRANSMIL)), None)
        if self.lambda_patch and nonlinear:
            raise ValueError(
                f"{nonlinear} has no linear class scores of a patch's embedding, which lambda_patch fits; set it to 0"
            )
        refused = next((name for name in names if name not in OF_STUDENTS), None)
        if refused is None:
            return self
        if not self.distil:
            raise ValueError(
                f"teacher.aggregator={refused} pools the patches of a teacher, and the run has none; set it to "
                f"{' or '.join(OF_STUDENTS)}, by which students pool"
            )
        frozen = "stage2.init=frozen_head" if self.stage2.init == "frozen_head" else "baseline stage1_only"
        if self.stage2.init == "frozen_head" or "stage1_only" in self.baselines:
            raise ValueError(
                f"{frozen} gives the student its teacher's head, and the student cannot pool as {refused} does; "
                "leave it out, or train a teacher of gated_attention"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_needs_hr_pixels(self) -> TrainConfig:
        if self.hr_features is None:
            return self
        if not self.distil:
            raise ValueError("hr_features are of the teacher, and the run has none; leave them out")
        if self.selection.layers:
            raise ValueError("selection.layers needs the layers of HR patches, which hr_features lack; leave them out")
        if self.stain.normalise != "none":
            raise ValueError("stain.normalise changes HR patches, which hr_features were made without; set it to none")
        if self.stage1.epochs and not self.stage1.lambda_attn:
            raise ValueError("hr_features have no layers for stage 1; raise stage1.lambda_attn, or set stage1.epochs=0")
        if self.exclude_artefacts:
            raise ValueError("exclude_artefacts chooses HR patches, which hr_features bring with them; set it to false")
        return self

    @model_validator(mode="after")
    def _refuse_what_needs_the_encoder(self) -> TrainConfig:
        if self.encoder.teacher != ABSENT or not self.distil:
            return self
        if self.hr_features is None:
            raise ValueError("encoder.teacher=none takes the features of hr_features, and there are none; name both")
        if self.encoder.student == "teacher":
            raise ValueError(
                "encoder.student=teacher copies the teacher's encoder, and encoder.teacher=none has none; name the "
                "student's, such as encoder.student=mobilenet_v3_large"
            )
        if self.encoder.teacher_layers:
            raise ValueError("encoder.teacher_layers are layers of an encoder, and encoder.teacher=none has none")
        if self.stage1.targets == "on_the_fly" and self.stage1.epochs:
            raise ValueError(
                "stage1.targets=on_the_fly encodes HR patches, and encoder.teacher=none cannot; use stored"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_needs_a_fitted_teacher(self) -> TrainConfig:
        if self.teacher.mil is None:
            return self
        if not self.distil:
            raise ValueError("teacher.mil is a teacher, and distil=false asks for none; leave one of both out")
        if self.selection.inner_folds:
            raise ValueError(
                "selection.inner_folds chooses the recipe of a teacher, and teacher.mil is trained already; set it to 0"
            )
        if self.encoder.pca is not None:
            raise ValueError("teacher.mil takes the encoder's own features, which encoder.pca reduces; leave it out")
        return self

    @model_validator(mode="after")
    def _refuse_what_needs_a_teacher(self) -> TrainConfig:
        if self.distil:
            return self
        refused = [name for name in self.baselines if name not in UNDISTILLED_BASELINES]
        if refused:
            allowed = ", ".join(UNDISTILLED_BASELINES)
            why = "is the student itself" if refused[0] == "labels_only_finetuned" else "needs a teacher"
            raise ValueError(f"baseline {refused[0]} {why} in a run without a teacher; keep {allowed} alone, or none")
        if self.compare:
            raise ValueError("compare trains further HR teachers, and the run reads no HR patches; leave it out")
        if self.selection.inner_folds:
            raise ValueError("selection.inner_folds chooses the teacher's recipe, and the run has none; set it to 0")
        if self.ablation and self.lambda_patch == 0:
            raise ValueError("the ablation leaves out terms of the teacher, and the run has none; set ablation=false")
        if self.encoder.pca is not None:
            raise ValueError(
                "encoder.pca is fitted to the HR features of the teacher, and the run has none; leave it out"
            )
        if self.encoder.teacher_layers and self.encoder.student != "teacher":
            raise ValueError(
                "encoder.teacher_layers are layers of the teacher's encoder, which a run without a teacher reads only "
                f"with encoder.student=teacher, and it is {self.encoder.student}; leave teacher_layers out"
            )
        return self

    @property
    def plan(self) -> PatchPlan:
        """The two resolutions, equal without a teacher; raises `GeometryError` if they do not nest."""
        if not self.distil:  # LR patches are then the only ones, and tissue is measured in them
            return PatchPlan(self.lr_mpp, self.lr_mpp, self.lr_patch_px, self.lr_patch_px)
        return PatchPlan(self.hr_mpp, self.lr_mpp, self.hr_patch_px, self.lr_patch_px)

    @property
    def tissue(self) -> TissueConfig:
        """Parameters of the tissue mask."""
        return TissueConfig(exclude_artefacts=self.exclude_artefacts)

    @property
    def compared_layers(self) -> tuple[str, ...]:
        """The teacher's layers that the layer term of stage 1 compares; empty if the term or the stage is off."""
        stage = self.stage1
        is_used = self.distil and self.hr_features is None and stage.lambda_layer > 0 and stage.epochs > 0
        return tuple(name.partition(":")[0] for name in stage.layers) if is_used else ()
