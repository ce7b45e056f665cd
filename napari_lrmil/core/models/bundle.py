"""Bundle: a folder with the networks of a model and a card that states what inference needs. No pickles."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.encoders.spec import FROZEN
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.heavy_imports import import_lock
from napari_lrmil.core.models.card import CARD, IN_TORCH, STUDENT, TEACHER, NetworkCard, card_sha256, read_card
from napari_lrmil.core.models.cohort_distance import PATIENT_EMBEDDINGS, EmbeddingStatistics, read_embedding_statistics
from napari_lrmil.core.models.hub_bundle import fetch_hub_bundle, is_hub_bundle
from napari_lrmil.core.models.limits import ModelLimits, read_limits
from napari_lrmil.core.models.pooling import AggregatorWeights, ArrayWeights, read_mil_weights
from napari_lrmil.core.models.weight_file import check_weights
from napari_lrmil.core.site_settings import model_folders

if TYPE_CHECKING:
    from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork

Prepared = dict[Any, Any]  # key of a runtime -> compiled encoder
SHIPPED = Path(__file__).parents[2] / "bundles"


class Bundle:
    """An open bundle. Weights are read on first use, so a run of the student never reads the teacher's file.

    Parameters
    ----------
    where
        A folder, the name of a shipped bundle (``demo``, ``breast-idc``), or a bundle on the Hugging Face hub
        (``hf:owner/name``), which is downloaded if it is not cached.

    Raises
    ------
    BundleError
        If the folder is not a bundle, has another schema version, or cannot be downloaded.
    """

    def __init__(self, where: str | Path) -> None:
        self.path = find_bundle(where)
        self.card = read_card(self.path)
        self.prepared: Prepared = {}  # compiled encoders of this process
        self._checked_files: set[str] = set()  # files whose tensors were checked: once, and not for every use

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": {}}  # compiled encoders cannot be pickled

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.card.name

    @property
    def sha256(self) -> str:
        """Hash that identifies the model: of the weights' hashes and of all that inference depends on.

        Metrics, cohort, colour, intended use, limits and whether it was distilled are left out. They change what is
        said, never a probability, and bundles written before they were recorded keep their hash.
        """
        return card_sha256(self.card)

    @cached_property
    def limits(self) -> ModelLimits | None:
        """Operating point and conformal scores; None in bundles of versions that did not measure them.

        Raises
        ------
        BundleError
            If the file is damaged, or of another model.
        """
        return read_limits(self.path, self.sha256, self.card.classes)

    @property
    def has_teacher(self) -> bool:
        """Whether the bundle has an HR teacher."""
        return self.card.teacher is not None

    @property
    def names_teacher(self) -> bool:
        """Whether the bundle only names its teacher's encoder, so that loading it can download weights."""
        return self.card.teacher is not None and self.card.teacher.encoder.family == FROZEN

    @property
    def teacher_notice(self) -> str | None:
        """Licence and terms of an encoder that the bundle only names. They must be shown before it is loaded.

        Raises
        ------
        EncoderError
            If the encoder is unknown because the extra `encoders` is not installed.
        """
        if not self.names_teacher:
            return None
        from napari_lrmil.core.encoders import encoder_notice

        return encoder_notice(self.require_teacher().encoder.name)

    def require_teacher(self) -> NetworkCard:
        """Return the teacher's card; raise `BundleError` if the bundle has none."""
        if not self.card.distilled:
            raise BundleError(self.path, "teacher", "the student was not distilled, so there is no teacher to run")
        if self.card.teacher is None:
            raise BundleError(self.path, "teacher", "the bundle has no teacher; run without --teacher")
        return self.card.teacher

    @cached_property
    def student(self) -> StudentNetwork:
        """The student in torch, in evaluation mode on the CPU; raises as `load_student` does."""
        with import_lock:
            from napari_lrmil.core.models.networks import load_student

        return load_student(self)

    @cached_property
    def teacher(self) -> TeacherNetwork:
        """The HR teacher in torch, in evaluation mode on the CPU; raises as `load_teacher` does."""
        with import_lock:
            from napari_lrmil.core.models.networks import load_teacher

        return load_teacher(self)

    @cached_property
    def student_mil(self) -> ArrayWeights:
        """Weights of the student's MIL, read without torch; raises as `verified_file` does."""
        return read_mil_weights(self.verified_file(STUDENT), self.card.student.pooled_share)

    @cached_property
    def teacher_mil(self) -> AggregatorWeights:
        """Weights of the teacher's MIL, read without torch if its aggregator has a form in NumPy.

        Raises as `require_teacher` and `verified_file` do.
        """
        card = self.require_teacher()
        if card.aggregator in IN_TORCH:
            with import_lock:
                from napari_lrmil.core.models.networks import load_teacher_mil

            return load_teacher_mil(self).weights()
        return read_mil_weights(self.verified_file(TEACHER), card.pooled_share)

    @cached_property
    def embedding_statistics(self) -> EmbeddingStatistics | None:
        """Statistics of the training slides' embeddings, or None; raises as `read_embedding_statistics` does."""
        return read_embedding_statistics(self.path, self.sha256, self.card.student.dim)

    @cached_property
    def patient_embedding_statistics(self) -> EmbeddingStatistics | None:
        """Statistics of the training patients' embeddings, or None; raises as `read_embedding_statistics` does."""
        return read_embedding_statistics(self.path, self.sha256, self.card.student.dim, PATIENT_EMBEDDINGS)

    def verified_file(self, file: str) -> Path:
        """Return the path of one of the bundle's files, whose content has the hash in the card.

        Raises
        ------
        BundleError
            If the file is missing, does not match its hash, or holds what cannot be weights of the card's network.
        """
        path = self.path / file
        if not path.is_file():
            raise BundleError(self.path, file, f"{file} is missing; the bundle is incomplete, copy it again")
        if file_sha256(path) != self.card.hashes.get(file):
            raise BundleError(
                self.path, file, f"{file} does not match the hash in {CARD}; it was altered, copy it again"
            )
        if file not in self._checked_files:
            check_weights(path, self.card, self.require_teacher() if file == TEACHER else self.card.student)
            self._checked_files.add(file)
        return path


def find_bundle(where: str | Path) -> Path:
    """Return the folder of a bundle, given as a folder or by name.

    A name is that of a shipped bundle, of one in the site's folders of models, or of one on the hub.

    Raises
    ------
    BundleError
        If there is none.
    """
    if is_hub_bundle(where):
        return fetch_hub_bundle(str(where))
    path = Path(where)
    for folder in (path, SHIPPED / path):  # a folder with the name of a shipped bundle counts only if it has a card
        if (folder / CARD).is_file():
            return folder
    if path.is_dir():
        return path
    for zoo in model_folders() if path.name == str(where) else ():
        if (zoo / path / CARD).is_file():
            return zoo / path
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
    raise BundleError(
        path,
        CARD,
        f"no bundle with this path or name; expected a folder with {CARD}, a shipped bundle ({shipped or 'none'}), "
        "or hf:owner/name",
    )


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the models that are shipped with the package."""
    return tuple(sorted(p.parent.name for p in SHIPPED.glob(f"*/{CARD}")))
