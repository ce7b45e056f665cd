"""Recipes of the teacher: the settings that the inner cross-validation compares."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from lrmil_training.config import Aggregator, TeacherConfig, TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Candidate: settings of the teacher that the inner folds compare."""

    aggregator: Aggregator
    lr: float

    def apply(self, teacher: TeacherConfig) -> TeacherConfig:
        """Return the teacher's settings with those of this candidate."""
        return teacher.model_copy(update={"aggregator": self.aggregator, "lr": self.lr})

    @property
    def text(self) -> str:
        """The settings in words."""
        return f"{self.aggregator}, learning rate {self.lr:g}"


def list_recipes(config: TrainConfig) -> list[Recipe]:
    """Return all combinations of the candidates, in the order in which the configuration names them."""
    selection, teacher = config.selection, config.teacher
    aggregators, rates = selection.aggregators or (teacher.aggregator,), selection.lr or (teacher.lr,)
    return list(dict.fromkeys(Recipe(*values) for values in product(aggregators, rates)))
