"""Configuration of a training run: frozen values, presets, and YAML files.

The text below each field states meaning and unit and the reason for its default. The window shows it.
"""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from napari_lrmil.core.encoders.spec import ABSENT
from napari_lrmil.core.errors import ConfigError
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
    class_name_problem,
)
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.yaml_text import parse_yaml

# Upper bounds beyond any use: a slip of the keyboard must not fill memory or run for ever.
MAX_EPOCHS, MAX_COUNT, MAX_WIDTH, MAX_RUNS, MAX_SEED, MAX_RATE = 1_000_000, 1_000_000, 65_536, 1_000, 2**31, 100.0
MAX_FILE_BYTES = 1_000_000  # a configuration has a few thousand
MIN_FOLDS = 3  # one each for test, validation and training


class _Frozen(BaseModel):
    # YAML reads 1e-4 as text and precision=32 as a number, so both are converted.
    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _coerce(cls, value: Any, info: ValidationInfo) -> Any:
        """Accept what people write in YAML: a single value for a list, a number for a name, text for a number."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind in (int, float, int | None, float | None):  # Python counts true as 1
            raise ValueError("expected a number")
        # layers: block_12 and lr: 1e-4 are written without brackets where the field takes several values.
        if get_origin(kind) is tuple and not isinstance(value, list | tuple):
            return _as_tuple(value)
        if get_origin(kind) is Literal and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if kind in (int, int | None) and isinstance(value, str):
            return _number(value)
        return value


def _as_tuple(value: Any) -> Any:
    """Return a single value as a tuple; text is split at commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value if value is None or isinstance(value, dict) else (value,)


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text  # the type check refuses it and quotes it
    return value if math.isfinite(value) else text


SMALL_STUDENTS = ("mobilenet_v3_large", "mobilenet_v2", "convnext_atto")  # known by name, with random weights


def split_layers(text: str) -> tuple[str, ...]:
    """Return the names of joined layers such as ``block_14+block_15``.

    Raises
    ------
    ValueError
        If a name is empty or comes twice.
    """
    names = tuple(name.strip() for name in text.split("+"))
    if "" in names:
        raise ValueError("a layer has no name; expected names such as block_15, or [] for the encoder's embedding")
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise ValueError(f"layer {doubled} is joined with itself; name every layer once")
    return names


class EncoderConfig(_Frozen):
    """Networks that encode patches."""

    teacher: str = Field("demo", min_length=1)
    """Frozen HR encoder: a .safetensors file, a folder, hf:owner/name, lazyslide:name, or a bundle. The word none,
    with hr_features: it is not at hand, so the bundle leaves the teacher out."""
    student: str = Field("teacher", min_length=1)
    """The word teacher: a copy of the teacher's encoder (the paper's choice). mobilenet_v3_large, mobilenet_v2 or
    convnext_atto: small, with random weights. Or another encoder, as above."""
    teacher_layers: tuple[str, ...] = ()
    """Layers of the teacher's encoder whose pooled maps, joined, are its embedding, as in block_14+block_15. A student
    that is a copy has the same. The last layer can be too specialised. Empty: the encoder's own embedding."""

    @field_validator("teacher_layers")
    @classmethod
    def _split_joined(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names; a text joins them by a plus sign, as a sweep writes them."""
        return split_layers("+".join(layers)) if layers else ()

    pca: int | None = Field(None, ge=1, le=MAX_WIDTH)
    """Dimensions to which a principal component analysis of the training slides' HR features reduces the teacher's
    embedding, without labels; for wide joined layers. None: not reduced."""


class StainConfig(_Frozen):
    """Colour of the patches."""

    normalise: Literal["none", "reinhard", "density_gain"] = "none"
    """Bring every slide to the mean colour of the training slides, by statistics of its tissue at 16 µm per pixel, the
    same for HR and LR. Density_gain: optical density of each channel. Reinhard: mean and deviation of CIELAB."""


class SplitConfig(_Frozen):
    """Slides that are set aside."""

    calibration: float = Field(0.0, ge=0, le=0.8)
    """Share of the training patients of each class that neither training, selection nor temperature sees; their scores
    give a prediction its set of classes. A set at 90 % needs 9 patients or more. 0: none, and no sets."""


class OperatingPointConfig(_Frozen):
    """Operating point of a model of two classes."""

    sensitivity: float | None = Field(None, gt=0, le=1)
    """Sensitivity that the threshold must reach on validation slides. None: the threshold with the largest sum of
    sensitivity and specificity there (Youden's index)."""


class TeacherConfig(_Frozen):
    """The HR teacher's MIL."""

    epochs: int = Field(60, ge=1, le=MAX_EPOCHS)
    """Upper bound; early stopping usually ends sooner."""
    lr: float = Field(3e-3, gt=0, le=MAX_RATE)
    """Learning rate of Adam; the best of four on validation (Real tissue)."""
    aggregator: Aggregator = "gated_attention"
    """Pooling of teacher and students. Gated_attention: the paper's. Linear_topk: linear scores of each class, mean of
    the top share; it has fewer weights, for few slides. The others pool the teacher alone; students have gated
    attention."""
    top_share: float = Field(0.15, gt=0, le=1)
    """Share of the patches of a slide whose mean score counts; for linear_topk."""
    hidden: int = Field(64, ge=1, le=MAX_WIDTH)
    """Width of the attention's gate. The published sizes of abmil, clam_sb, dsmil and transmil belong to 64."""
    weight_decay: float = Field(1e-4, ge=0, le=MAX_RATE)
    """L2 penalty of Adam: bags are few and wide."""
    min_epochs: int = Field(15, ge=0, le=MAX_EPOCHS)
    """First epoch that can be selected: early AUROC on few slides is luck (Method 5)."""
    patience: int = Field(15, ge=1, le=MAX_EPOCHS)
    """Epochs without a better validation figure before stopping."""
    ema: float = Field(0.97, ge=0, lt=1)
    """Decay per step of the weight average; 0.97 gave stable selection (Method 5)."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of patches left out at random in each step; 0 unless it helps."""
    feature_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the embedding's dimensions that are neutral in a step, the same in all patches of the slide: on few
    slides a MIL of many dimensions learns chance. 0: none."""
    patches_per_slide: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Patches drawn of a slide in each step, so that a slide differs from step to step. None takes all."""
    mil: Path | None = None
    """Attention MIL that another program trained on this encoder's features: a checkpoint of CLAM_SB, torchmil's ABMIL
    or STAMP's attention MIL. It is the teacher, frozen, and slides need no labels. None: the teacher is trained."""
    mil_classes: tuple[str, ...] = ()
    """Classes of teacher.mil, in the order of its outputs. Empty: the order of the cohort's classes, and without labels
    they are numbered."""

    @field_validator("mil")
    @classmethod
    def _require_file_name(cls, file: Path | None) -> Path | None:
        if file is not None and (not str(file).isprintable() or str(file).lower() in ("yes", "no", "on", "off", ".")):
            raise ValueError("expected a file with the weights of an attention MIL; leave the key out for none")
        return file

    @model_validator(mode="after")
    def _require_use_of_mil(self) -> TeacherConfig:
        if self.mil is None and self.mil_classes:
            raise ValueError("mil_classes are the classes of mil, which is not set; set it, or leave mil_classes out")
        if self.mil is not None and self.aggregator != "gated_attention":
            raise ValueError(
                f"aggregator {self.aggregator} is of a teacher that is trained, and mil is one of attention; leave one "
                "of both out"
            )
        if problem := class_name_problem(self.mil_classes):
            raise ValueError(f"mil_classes: {problem}")
        return self


class SelectionConfig(_Frozen):
    """Choice of the teacher's recipe by an inner cross-validation."""

    inner_folds: int = Field(0, ge=0, le=MAX_RUNS)
    """0: the settings of the teacher as they are, and its epoch by validation. k: training and validation patients are
    dealt into k folds, and the held-out folds choose the recipe and the epoch. Test slides are never used."""
    aggregators: tuple[Aggregator, ...] = ()
    """Candidates for teacher.aggregator. None: that of the teacher alone."""
    lr: tuple[float, ...] = ()
    """Candidates for teacher.lr. None: that of the teacher alone."""
    layers: tuple[str, ...] = ()
    """Candidates for encoder.teacher_layers, joined layers each, as in block_15, block_14+block_15. HR features of all
    are extracted at once. None: encoder.teacher_layers alone."""

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys("+".join(split_layers(text)) for text in value))

    @field_validator("lr")
    @classmethod
    def _require_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and (min(value) <= 0 or max(value) > MAX_RATE):
            raise ValueError(f"learning rates must be above 0 and up to {MAX_RATE:g}")
        return value

    @model_validator(mode="after")
    def _require_folds(self) -> SelectionConfig:
        if self.inner_folds == 1:
            raise ValueError("inner_folds=1 holds no patient out; take 2 or more, or 0 for no inner cross-validation")
        if self.inner_folds == 0 and (self.aggregators or self.lr or self.layers):
            raise ValueError("candidates are compared by the inner folds, and inner_folds is 0; set it, to 5 say")
        return self


class Stage1Config(_Frozen):
    """Patch-level distillation."""

    epochs: int = Field(6, ge=0, le=MAX_EPOCHS)
    """Six passes over 2,400 LR patches were enough (Method 5). 0 turns stage 1 off."""
    lr: float = Field(4e-4, gt=0, le=MAX_RATE)
    """Peak learning rate of a one-cycle schedule."""
    batch_size: int = Field(32, ge=2, le=MAX_WIDTH)
    """LR patches per step."""
    patches_per_slide: int | None = Field(None, ge=1, le=MAX_COUNT)
    """LR patches drawn of a slide in each epoch. None takes all, for small slides."""
    layers: tuple[str, ...] = ("block_12",)
    """Maps that the layer term compares: an intermediate one does no harm.
    For a student of another architecture teacher's:student's, such as block_12:block_9."""
    projection: Literal["learned", "identity"] = "learned"
    """Map from the student's widths to the teacher's. Identity needs equal widths;
    on a late map it works against the attention term."""
    lambda_layer: float = Field(0.1, ge=0, le=1000)
    """Weight of the layer term."""
    lambda_attn: float = Field(1.0, ge=0, le=1000)
    """Weight of the attention-weighted embedding term."""
    attention: Literal["teacher", "uniform"] = "teacher"
    """Weights of the children in the embedding term; uniform is a control."""
    targets: Literal["stored", "on_the_fly"] = "stored"
    """HR embeddings from disk, or computed from the augmented HR pixels."""
    weight_decay: float = Field(1e-2, ge=0, le=MAX_RATE)
    """Weight decay of AdamW."""
    augment: bool = True
    """Mirror and turn LR patch and children together."""
    stain_sd: float = Field(0.0, ge=0, le=1)
    """Deviation of the relative change of each stain, the same in LR and HR; needs targets on_the_fly."""

    @model_validator(mode="after")
    def _require_targets_for_stain(self) -> Stage1Config:
        if self.stain_sd > 0 and self.targets == "stored":
            raise ValueError(
                "stain augmentation changes LR and HR pixels alike, which stored targets cannot follow; "
                "set stage1.targets=on_the_fly or stage1.stain_sd=0"
            )
        return self

    @model_validator(mode="after")
    def _require_a_term(self) -> Stage1Config:
        if self.epochs > 0 and self.lambda_layer == self.lambda_attn == 0:
            raise ValueError("every weight is 0; raise lambda_layer or lambda_attn, or set stage1.epochs=0")
        return self


class Stage2Config(_Frozen):
    """Slide-level distillation."""

    epochs: int = Field(60, ge=1, le=MAX_EPOCHS)
    """Upper bound; early stopping usually ends sooner."""
    lr: float = Field(3e-4, gt=0, le=MAX_RATE)
    """Learning rate of Adam, lower than the teacher's: stage 2 starts from the teacher's MIL."""
    lambda_ce: float = Field(1.0, ge=0, le=1000)
    """Weight of the label term. The first three terms have equal weights unless a measurement favours others."""
    lambda_bag: float = Field(1.0, ge=0, le=1000)
    """Weight of the term of class probabilities."""
    lambda_soft: float = Field(1.0, ge=0, le=1000)
    """Weight of the attention term."""
    lambda_hard: float = Field(0.0, ge=0, le=1000)
    """Weight of the term of top against bottom patches; it had no effect (Method 5)."""
    temperature_bag: float = Field(2.0, gt=0, le=1000)
    """Temperature that softens class probabilities; 1 leaves them unchanged."""
    temperature_attn: float = Field(2.0, gt=0, le=1000)
    """Temperature that softens the attention of both networks; 2 was best (Method 5)."""
    topk: int = Field(4, ge=1, le=MAX_COUNT)
    """Top and bottom patches, each, of the hard term; on small slides few patches stand out."""
    attention_transfer: Literal["logsumexp", "mean", "max"] = "logsumexp"
    """How scores of children become the score of the LR patch; logsumexp is exact at temperature 1."""
    init: Literal["teacher", "fresh", "frozen_head"] = "teacher"
    """Initial weights of the MIL. Frozen_head: the teacher's MIL unchanged, no stage 2."""
    features: Literal["stored", "on_the_fly"] = "stored"
    """LR features from disk, or encoded from augmented pixels in every epoch, which is slower."""
    patch_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of patches left out at random in each step; 0 unless it helps."""
    feature_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the embedding's dimensions that are neutral in a step, the same in all patches of the slide: on few
    slides a MIL of many dimensions learns chance. 0: none."""
    patches_per_slide: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Patches drawn of a slide in each step, so that a slide differs from step to step. None takes all."""
    weight_decay: float = Field(1e-4, ge=0, le=MAX_RATE)
    """L2 penalty of Adam; as the teacher's, which has the same architecture."""
    min_epochs: int = Field(15, ge=0, le=MAX_EPOCHS)
    """First epoch that can be selected: early AUROC on few slides is luck (Method 5)."""
    patience: int = Field(15, ge=1, le=MAX_EPOCHS)
    """Epochs without a better validation figure before stopping."""
    ema: float = Field(0.97, ge=0, lt=1)
    """Decay per step of the weight average; 0.97 gave stable selection (Method 5)."""

    @model_validator(mode="after")
    def _require_a_term(self) -> Stage2Config:
        terms = (self.lambda_ce, self.lambda_bag, self.lambda_soft, self.lambda_hard)
        if self.init != "frozen_head" and not any(terms):
            raise ValueError("every weight is 0; raise one of lambda_ce, lambda_bag, lambda_soft, lambda_hard")
        return self


class Stage3Config(_Frozen):
    """End-to-end fine-tuning of the student's encoder through its MIL."""

    epochs: int = Field(15, ge=0, le=MAX_EPOCHS)
    """450 updates on 60 slides, which validation favours (Real tissue). 0 turns stage 3 off."""
    lr: tuple[float, ...] = Field((3e-5, 1e-4, 3e-4), min_length=1)
    """Learning rates of AdamW; of several, validation chooses, because the choice is fragile."""
    patches_per_slide: int = Field(24, ge=1, le=MAX_COUNT)
    """LR patches drawn of a slide at each step, which bounds memory."""
    slides_per_step: int = Field(2, ge=1, le=MAX_COUNT)
    """Slides per update."""
    keep_stage2_terms: bool = True
    """Keep the loss of stage 2; false: labels alone."""
    weight_decay: float = Field(1e-2, ge=0, le=MAX_RATE)
    """Weight decay of AdamW, as in stage 1: many weights learn from few slides."""
    augment: bool = True
    """Mirror and turn every patch: tissue has no preferred direction."""
    min_epochs: int = Field(5, ge=0, le=MAX_EPOCHS)
    """First epoch that can be selected; earlier than in stage 2, because the student is fitted already."""
    patience: int = Field(15, ge=1, le=MAX_EPOCHS)
    """Epochs without a better validation figure before stopping."""
    ema: float = Field(0.97, ge=0, lt=1)
    """Decay per step of the weight average: single steps are fragile here (Method 5)."""
    feature_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the embedding's dimensions that are neutral for the MIL in a step; see teacher.feature_dropout."""

    @field_validator("lr")
    @classmethod
    def _require_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0 or max(value) > MAX_RATE:
            raise ValueError(f"learning rates must be above 0 and up to {MAX_RATE:g}")
        return value


Baseline = Literal["labels_only", "labels_only_finetuned", "stage1_only", "stage2_only", "both"]
UNDISTILLED_BASELINES: tuple[Baseline, ...] = ("labels_only",)  # those that a run without a teacher can train


class TrainConfig(_Frozen):
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


# Preset `paper`: the paper's choices as recorded in docs/explanation/method.md. They are 256 px patches at 20x and 5x,
# stages 1 and 2 with every term, no stage 3, and a student that is a copy of the teacher, so that maps need no
# projection. Everything that the paper leaves open has our defaults. What a preset has beyond the defaults of the
# fields is for new runs: a default that changed would change the runs of earlier versions.
NEW_RUNS: dict[str, Any] = {"exclude_artefacts": True}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {**NEW_RUNS},
    "paper": {
        **NEW_RUNS,
        "hr_mpp": 0.5,
        "lr_mpp": 2.0,
        "hr_patch_px": 256,
        "lr_patch_px": 256,
        "encoder": {"student": "teacher"},
        "stage1": {"lambda_layer": 1.0, "lambda_attn": 1.0, "projection": "identity"},
        "stage2": {"lambda_hard": 1.0, "init": "teacher"},
        "stage3": {"epochs": 0},
    },
    # The shipped model `demo`, for phantoms: patches of 128 px, so that a small slide still has a map to look at.
    "demo": {
        "hr_mpp": 0.5,
        "lr_mpp": 2.0,
        "hr_patch_px": 128,
        "lr_patch_px": 128,
        "teacher": {"epochs": 60},
        "stage1": {"epochs": 12, "lr": 1e-3},  # chosen on validation slides
        "stage2": {"epochs": 60},
        "stage3": {"epochs": 0},  # phantoms need no third stage, and it takes longest
    },
}


def load_config(
    path: Path | str | None = None, settings: Sequence[str] = (), run_file: Path | None = None
) -> TrainConfig:
    """Return the configuration of a YAML file or a preset's name, changed by ``key=value`` settings.

    Parameters
    ----------
    path
        YAML file or name of a preset; None for the preset ``default``.
    settings
        Texts such as ``stage1.lambda_attn=0.5``, applied in order.
    run_file
        Configuration file of the run, if it was begun before: what presets have for new runs is not applied to a run of
        a version that did not know it, so that the same call continues it.

    Raises
    ------
    ConfigError
        If a key is unknown, a value is impossible, or the file is not YAML.
    GeometryError
        If the two resolutions do not nest.
    """
    # A deep copy, because settings are written into nested groups below.
    name = "default" if path is None else str(path)
    values = copy.deepcopy(PRESETS[name]) if name in PRESETS else _read(Path(name))
    if name in PRESETS and run_file is not None and run_file.exists():
        stored = _read(run_file)
        values = {key: value for key, value in values.items() if key in stored or key not in NEW_RUNS}
    for setting in settings:
        _apply_setting(values, setting)
    keys = {setting.partition("=")[0].strip() for setting in settings}
    if name in PRESETS and values.get("hr_features") and "exclude_artefacts" not in keys:
        values.pop("exclude_artefacts", None)  # the patches are those of the features
    return build_config(values)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: no path can have a null character
        raise ConfigError(
            f"{path}: cannot be read ({error}) and is not a preset; the presets are {', '.join(PRESETS)}"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_FILE_BYTES:,} bytes; expected a configuration in YAML")
    values = _parse_yaml(content, f"{path}: not a readable YAML file", "expected YAML in UTF-8")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected YAML with keys and values, found {type(values).__name__}")
    return values


def _parse_yaml(content: str | bytes, problem: str, remedy: str) -> Any:
    """Return the content of a YAML text; raise `ConfigError` if it cannot be read. See `parse_yaml`."""
    try:
        return parse_yaml(content, numbers=False)  # each field converts its own
    except ValueError as error:
        raise ConfigError(f"{problem} ({error}); {remedy}") from error


def build_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return a checked configuration; see `load_config`."""
    try:
        config = TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_validation_sentence(error)) from error
    assert config.plan.n  # raises GeometryError if the resolutions do not nest
    return config


def _validation_sentence(error: ValidationError) -> str:
    """Return a sentence on the first wrong key; the next call names the next."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"configuration key '{key}' is unknown; available: {', '.join(known_keys())}"
    if not key:
        return f"configuration: {message}"
    if first["input"] is None and first["type"] != "invalid_key":
        return f"configuration key '{key}' has no value; write one, or leave the key out for its default"
    return f"configuration key '{key}': {message}, got {reprlib.repr(first['input'])[:80]}"


def known_keys() -> list[str]:
    """Return all configuration keys as ``--set`` takes them."""
    groups = {name: type(value) for name, value in TrainConfig() if isinstance(value, _Frozen)}
    flat = [name for name in TrainConfig.model_fields if name not in groups]
    return flat + [f"{group}.{name}" for group, model in groups.items() for name in model.model_fields]


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting}: expected key=value, such as stage1.lambda_attn=0.5")
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {setting}: {parent} is a value, not a group of keys")
    # As in a file: text, lists, true and false.
    values[last] = _parse_yaml(
        text, f"--set {setting[:100]}: the value is not readable as YAML", "quote it if it holds brackets"
    )


def dump_config(config: TrainConfig) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)  # in the order of the fields
