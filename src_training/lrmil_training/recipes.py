"""Recipes of the teacher: the settings that the inner cross-validation compares."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from lrmil_training.config import TeacherConfig, TrainConfig, split_layers
from napari_lrmil.core.models.card import Aggregator


@dataclass(frozen=True)
class Recipe:
    """Candidate: settings of the teacher that the inner folds compare.

    Attributes
    ----------
    aggregator, lr
        Of the teacher.
    layers
        Joined layers of the teacher's embedding; empty if there is no choice of layers.
    """

    aggregator: Aggregator
    lr: float
    layers: tuple[str, ...] = ()

    def apply(self, teacher: TeacherConfig) -> TeacherConfig:
        """Return the teacher's settings with those of this candidate."""
        return teacher.model_copy(update={"aggregator": self.aggregator, "lr": self.lr})

    @property
    def text(self) -> str:
        """The settings in words."""
        layers = f"{'+'.join(self.layers)}, " if self.layers else ""
        return f"{layers}{self.aggregator}, learning rate {self.lr:g}"


def list_recipes(config: TrainConfig) -> list[Recipe]:
    """Return all combinations of the candidates, in the order in which the configuration names them."""
    selection, teacher = config.selection, config.teacher
    aggregators, rates = selection.aggregators or (teacher.aggregator,), selection.lr or (teacher.lr,)
    layers = list_layers(config) or [()]
    return list(dict.fromkeys(Recipe(a, lr, names) for names, a, lr in product(layers, aggregators, rates)))


def list_layers(config: TrainConfig) -> list[tuple[str, ...]]:
    """Return the candidates for the joined layers of the teacher's embedding; nothing if there is no choice."""
    return [split_layers(text) for text in config.selection.layers]


def all_layers(config: TrainConfig) -> tuple[str, ...]:
    """Return the layers that HR features hold: those of all candidates, or the teacher's if there is no choice."""
    candidates = list_layers(config)
    return tuple(dict.fromkeys(name for names in candidates for name in names)) or config.encoder.teacher_layers
