"""Schemas of ``ladder.json`` and ``cascade.json``, which lie beside the ``prediction.json`` of a slide."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from napari_lrmil.core.results.schema import ResultFile

LADDER_FILE, LADDER_TABLE = "ladder.json", "ladder.csv"
CASCADE_FILE, CASCADE_TABLE = "cascade.json", "cascade.csv"


class RungEntry(BaseModel):
    """One resolution in ``ladder.json`` or ``cascade.json``.

    Attributes
    ----------
    magnification, mpp
        Resolution, as in ``5x``, and µm per pixel.
    network, bundle, bundle_sha256
        ``student`` or ``teacher`` of a bundle; None if no model of this resolution was given.
    state
        ``read``, ``missing`` or ``no model`` in a ladder; in a cascade see `CascadeStep`.
    reason
        Why there is no answer; empty if there is one.
    predicted, probabilities, calibrated
        Answer of the rung; None, empty and None without one.
    prediction_set
        Classes of the set at `coverage`; None if the model has no sets.
    no_set_reason
        Why there is no set; empty if there is one, and in files of earlier versions.
    same_answer
        Whether the answer is that of the finest rung that was read; None in a cascade.
    spearman, jaccard_top10, js_divergence, compared_patches
        Agreement of the attention with that of the finest rung; None for that rung and where patches do not nest.
    n_patches, pixels_decoded, seconds, cpu_seconds
        Cost of this rung as if it were the only one, the tissue mask included.
    warnings
        What makes this answer doubtful; empty in a cascade and in files of earlier versions. Warnings about the file
        of the slide are in ``prediction.json``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    magnification: str
    mpp: float
    network: Literal["student", "teacher"] | None = None
    bundle: str | None = None
    bundle_sha256: str | None = None
    state: str
    reason: str = ""
    predicted: str | None = None
    probabilities: dict[str, float] = {}
    calibrated: bool | None = None
    prediction_set: tuple[str, ...] | None = None
    no_set_reason: str = ""
    same_answer: bool | None = None
    spearman: float | None = None
    jaccard_top10: float | None = None
    js_divergence: float | None = None
    compared_patches: int | None = None
    n_patches: int | None = None
    pixels_decoded: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Magnification, and whether the teacher reads it."""
        return f"{self.magnification} teacher" if self.network == "teacher" else self.magnification

    @property
    def was_read(self) -> bool:
        """Whether the rung has an answer."""
        return self.predicted is not None


class _RungsFile(ResultFile):
    slide: str
    slide_fingerprint: str
    request_sha256: str
    classes: tuple[str, ...]
    coverage: float
    rungs: tuple[RungEntry, ...]
    version: str


class LadderFile(_RungsFile):
    """Content of ``ladder.json``.

    Attributes
    ----------
    slide, slide_fingerprint
        Name of the slide and hash of its pixels.
    request_sha256
        Hash of models, limits and options, by which a later call recognises the result.
    classes
        The classes in the models' order.
    coverage
        Coverage of the sets of classes.
    rungs
        The coarsest first, with the usual resolutions that are missing.
    reference
        Label of the finest rung that was read, with which the others are compared.
    text
        Sentence on where the answer changes.
    version
        Version of the program.
    """

    FILE_NAME: ClassVar[str] = LADDER_FILE

    reference: str
    text: str

    @property
    def changes(self) -> bool:
        """Whether a rung has another answer than the finest one."""
        return any(rung.same_answer is False for rung in self.rungs)


class CascadeFile(_RungsFile):
    """Content of ``cascade.json``; for the shared fields see `LadderFile`.

    Attributes
    ----------
    answered_by
        Label of the rung whose answer holds.
    predicted, probabilities, prediction_set
        That answer; the set is None if the model has no sets.
    went_up
        Whether a finer rung than the first was needed.
    is_settled
        Whether the set of the answer has one class, or the finest rung answered.
    budget
        Wall seconds for the slide; None if there was no limit.
    seconds, cpu_seconds, pixels_decoded
        Cost of the cascade on this slide.
    text
        The outcome as a sentence.
    """

    FILE_NAME: ClassVar[str] = CASCADE_FILE

    answered_by: str
    predicted: str
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] | None
    went_up: bool
    is_settled: bool
    budget: float | None
    seconds: float
    cpu_seconds: float
    pixels_decoded: int
    text: str
