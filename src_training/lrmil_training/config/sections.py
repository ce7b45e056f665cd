"""Sections of the configuration of a run: encoders, colour, slides set aside, teacher, and the three stages.

The text below each field states meaning and unit and the reason for its default. The window shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lrmil_training.config.fields import MAX_COUNT, MAX_EPOCHS, MAX_RATE, MAX_RUNS, MAX_WIDTH, Fields
from napari_lrmil.core.models.card import (
    Aggregator,
    class_name_problem,
)

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


class EncoderConfig(Fields):
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


class StainConfig(Fields):
    """Colour of the patches."""

    normalise: Literal["none", "reinhard", "density_gain"] = "none"
    """Bring every slide to the mean colour of the training slides, by statistics of its tissue at 16 µm per pixel, the
    same for HR and LR. Density_gain: optical density of each channel. Reinhard: mean and deviation of CIELAB."""


class SplitConfig(Fields):
    """Slides that are set aside."""

    calibration: float = Field(0.0, ge=0, le=0.8)
    """Share of the training patients of each class that neither training, selection nor temperature sees; their scores
    give a prediction its set of classes. A set at 90 % needs 9 patients or more. 0: none, and no sets."""


class OperatingPointConfig(Fields):
    """Operating point of a model of two classes."""

    sensitivity: float | None = Field(None, gt=0, le=1)
    """Sensitivity that the threshold must reach on validation slides. None: the threshold with the largest sum of
    sensitivity and specificity there (Youden's index)."""


class TeacherConfig(Fields):
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


class SelectionConfig(Fields):
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


class Stage1Config(Fields):
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


class Stage2Config(Fields):
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


class Stage3Config(Fields):
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
