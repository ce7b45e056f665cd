"""Colour-only baseline for breast carcinoma patches: what must be beaten for a network to be worth anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from breast_idc_patches import Float, Fold, Patch, Uint8, split_patients, targets_of
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

BOOSTED, LOGISTIC = "boosted trees", "logistic regression"
LEAST = 1e-6  # probabilities are kept this far from 0 and 1, where their log odds are infinite


def colour_features(pixels: Uint8) -> Float:
    """Return mean, standard deviation and three quantiles of each channel's optical density: (15,)."""
    density = -np.log((pixels.reshape(-1, 3).astype(np.float64) + 1) / 256)
    quantiles = np.quantile(density, (0.1, 0.5, 0.9), axis=0)
    return np.concatenate([density.mean(axis=0), density.std(axis=0), quantiles.ravel()])


def build_classifier(name: str, seed: int = 0) -> Any:
    """Return an unfitted classifier of colours."""
    if name == BOOSTED:
        return HistGradientBoostingClassifier(random_state=seed)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))


def score_by_colour(patches: Sequence[Patch], seed: int = 0) -> dict[str, Float]:
    """Return out-of-fold probabilities of carcinoma by each classifier, from folds that share no patient."""
    features = np.stack([colour_features(patch.read()) for patch in patches])
    targets = targets_of(patches)
    scores = {name: np.zeros(len(patches)) for name in (LOGISTIC, BOOSTED)}
    for train, test in split_patients(patches, seed):
        for name, values in scores.items():
            values[test] = _fit_and_score(name, features, targets, (train, test), seed)
    return scores


def colour_logits(patches: Sequence[Patch], features: Float, fold: Fold) -> tuple[Float, Float]:
    """Return log odds of carcinoma by boosted trees for the test rows, and for the other rows.

    The other rows are scored in inner folds by patient, so that an operating point chosen on them is not that of
    patches that the trees have seen. Trees for the test rows learn from all of them.
    """
    targets, seen = targets_of(patches), fold.seen
    inner = np.zeros(len(seen))
    for train, held_out in split_patients([patches[row] for row in seen], seed=1):
        inner[held_out] = _fit_and_score(BOOSTED, features, targets, (seen[train], seen[held_out]))
    test = _fit_and_score(BOOSTED, features, targets, (seen, fold.test))
    return log_odds(test), log_odds(inner)


def _fit_and_score(name: str, features: Float, targets: Any, rows: tuple[Any, Any], seed: int = 0) -> Float:
    train, test = rows
    classifier = build_classifier(name, seed).fit(features[train], targets[train])
    probabilities: Float = classifier.predict_proba(features[test])[:, 1]
    return probabilities


def log_odds(probabilities: Float) -> Float:
    """Return the log odds of (N,) probabilities."""
    p = np.clip(probabilities, LEAST, 1 - LEAST)
    odds: Float = np.log(p / (1 - p))
    return odds
