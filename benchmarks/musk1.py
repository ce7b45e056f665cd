"""Accuracy of our aggregators on MUSK1, beside published figures (Ilse et al. 2018, table 1; Li et al. 2021).

    python benchmarks/musk1.py --data musk1.csv [--aggregator NAME] [--body plain|mlp] [--json OUT]

The table has no header: label and number of the bag, then 166 features; the Python package mil 1.0.5 (MIT) contains it.

Ten-fold cross-validation over bags, stratified by label, five runs with other folds and other weights. Features are
standardised by the training folds of the moment. Nothing is chosen on a test fold: settings are fixed beforehand
(plain: the project's own for a teacher; mlp: the published ones), and the weights after the last epoch are tested.

``plain`` is the module as this project uses it on embeddings: attention over the standardised features themselves, and
a linear head. ``mlp`` puts the published transform of instances before it: three layers of 256, 128 and 64 with ReLU
and dropout, trained along with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.models.aggregators import build_aggregator
from napari_lrmil.core.models.card import GATED, Aggregator
from napari_lrmil.core.models.mil import MIL

PUBLISHED = {  # in the words of the page docs/explanation/benchmarks/aggregators.md
    "gated_attention": "0.900 ± 0.050",
    "abmil": "0.892 ± 0.040",
    "max": "0.889 ± 0.039 for mi-Net",
    "dsmil": "0.932 ± 0.023",
}


@dataclass(frozen=True)
class Settings:
    """Architecture and training settings of one network.

    Attributes
    ----------
    widths
        Of the layers that transform an instance before the MIL; none leaves instances as they are.
    dropout
        After each of them.
    hidden
        Width of the attention's gate.
    optimizer
        ``adam``, or ``sgd`` with momentum 0.9.
    lr, weight_decay, epochs
        Of the optimiser, a step per bag. There is no early stopping.
    """

    widths: tuple[int, ...]
    dropout: float
    hidden: int
    optimizer: str
    lr: float
    weight_decay: float
    epochs: int


BODIES = {
    "plain": Settings((), 0.0, 64, "adam", 1e-3, 1e-4, 60),  # rate, decay, width, epochs of a default teacher
    "mlp": Settings((256, 128, 64), 0.5, 64, "sgd", 5e-4, 5e-3, 100),  # the paper's; its dropout rate is our guess
}


@dataclass(frozen=True)
class Bags:
    """All bags, in the order of their numbers.

    Attributes
    ----------
    instances
        For each bag (N, D) features as they stand in the file.
    labels
        (B,) 0 or 1.
    """

    instances: tuple[Tensor, ...]
    labels: NDArray[np.int64]


def read_bags(path: Path) -> Bags:
    """Return the bags of a CSV without header: label of the bag, number of the bag, features.

    Raises
    ------
    ValueError
        Where a label is neither 0 nor 1, or two rows of a bag differ in it.
    """
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if not np.isin(table[:, 0], (0, 1)).all():
        raise ValueError(f"{path} has labels {sorted(set(table[:, 0]))} in its first column; expected 0 and 1")
    instances, labels = [], []
    for number in np.unique(table[:, 1]):
        rows = table[table[:, 1] == number]
        if len(set(rows[:, 0])) > 1:
            raise ValueError(f"{path}: the rows of bag {number:g} have both labels; a bag has one")
        instances.append(torch.from_numpy(rows[:, 2:]).float())
        labels.append(int(rows[0, 0]))
    return Bags(tuple(instances), np.array(labels))


def network(dim: int, settings: Settings, aggregator: Aggregator = GATED) -> nn.Sequential:
    """Return the transform of instances, where there is one, followed by our MIL with two classes."""
    layers: list[nn.Module] = []
    for width in settings.widths:
        layers += [nn.Linear(dim, width), nn.ReLU(), nn.Dropout(settings.dropout)]
        dim = width
    return nn.Sequential(*layers, build_aggregator(aggregator, dim, 2, settings.hidden, top_share=0.15))


def standardised(bags: Bags, train: NDArray[np.int64]) -> list[Tensor]:
    """Return every bag in units of the training bags' instances; a feature that never varies there stays unscaled."""
    seen = torch.cat([bags.instances[i] for i in train])
    deviation = seen.std(dim=0)
    deviation[deviation == 0] = 1
    return [(bag - seen.mean(dim=0)) / deviation for bag in bags.instances]


def fit(model: nn.Sequential, bags: Sequence[Tensor], labels: Tensor, settings: Settings) -> None:
    """Fit a network in place: every epoch sees the bags once, in another order."""
    if settings.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
        )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay, fused=True
        )
    model.train()
    for _ in range(settings.epochs):
        for i in torch.randperm(len(bags)).tolist():
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(model, bags[i], labels[i]))
            optimizer.step()


def loss_of(model: nn.Sequential, bag: Tensor, label: Tensor) -> Tensor:
    """Return the label term and the aggregator's own terms, as in the training of a teacher."""
    output = model(bag)
    streams = output.logits[None] if output.label_logits is None else output.label_logits
    terms = [functional.cross_entropy(streams, label.expand(len(streams)))]
    mil = model[-1]
    assert isinstance(mil, MIL)
    return torch.stack([*terms, *mil.own_terms(output, int(label)).values()]).sum()


@torch.no_grad()
def accuracy(model: nn.Sequential, bags: Sequence[Tensor], labels: Tensor) -> float:
    """Return the share of bags whose larger logit is the label's."""
    model.eval()
    predicted = torch.stack([model(bag).logits.argmax() for bag in bags])
    return float((predicted == labels).double().mean())


def one_run(bags: Bags, settings: Settings, folds: int, seed: int, aggregator: Aggregator = GATED) -> Iterator[float]:
    """Yield the accuracy on each test fold; the seed fixes folds, weights, order and dropout."""
    from sklearn.model_selection import StratifiedKFold

    labels = torch.from_numpy(bags.labels)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(bags.labels, bags.labels)
    for fold, (train, test) in enumerate(splits):
        torch.manual_seed(1000 * seed + fold)
        scaled = standardised(bags, train)
        model = network(scaled[0].shape[1], settings, aggregator)
        fit(model, [scaled[i] for i in train], labels[train], settings)
        yield accuracy(model, [scaled[i] for i in test], labels[test])


def summary(accuracies: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, deviations and standard errors of (runs, folds) accuracies; undefined ones are left out.

    A fold has nine or ten bags, and the deviation over folds comes mostly from that small number. Each run covers all
    bags, and the deviation over runs comes from other folds and other weights. All runs share the same bags. Neither
    standard error therefore tells how far the mean would move on other molecules.
    """
    statistics = {"mean": float(accuracies.mean())}
    for name, values in {"folds": accuracies.ravel(), "runs": accuracies.mean(axis=1)}.items():
        if len(values) > 1:
            deviation = float(values.std(ddof=1))
            statistics |= {f"sd_{name}": deviation, f"se_{name}": deviation / len(values) ** 0.5}
    return statistics


def report(body: str, aggregator: str, statistics: dict[str, float], shape: tuple[int, int], cpu: float) -> str:
    """Return the figures as text."""
    spread = {
        "over all folds": ("sd_folds", "se_folds"),
        "over means of runs": ("sd_runs", "se_runs"),
    }
    lines = [
        f"MUSK1, {aggregator}, {body}, {shape[0]} runs x {shape[1]} folds: accuracy {statistics['mean']:.3f} "
        f"(published {PUBLISHED.get(aggregator, 'none')})"
    ]
    for what, (sd, se) in spread.items():
        if sd in statistics:
            lines.append(f"  {what}: sd {statistics[sd]:.3f}, standard error {statistics[se]:.3f}")
    return "\n".join([*lines, f"  {cpu:.0f} CPU-seconds"])


def main() -> None:
    """Cross-validate, print the statistics, and write them with --json."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="musk1.csv")
    p.add_argument("--body", choices=BODIES, default="plain")
    p.add_argument("--aggregator", choices=get_args(Aggregator), default=GATED)
    p.add_argument("--hidden", type=int, help="width of the attention, from which other sizes follow")
    p.add_argument("--lr", type=float, help="learning rate; if not given: that of the body")
    p.add_argument("--epochs", type=int, help="if not given: those of the body")
    p.add_argument("--folds", type=int, default=10)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--json", type=Path, help="where to write the figures")
    args = p.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    bags, settings = read_bags(args.data), BODIES[args.body]
    changes = {name: getattr(args, name) for name in ("hidden", "lr", "epochs")}
    settings = replace(settings, **{name: value for name, value in changes.items() if value is not None})
    rows = []
    for seed in range(args.runs):
        rows.append(list(one_run(bags, settings, args.folds, seed, args.aggregator)))
        print(f"run {seed}: {np.mean(rows[-1]):.3f}", flush=True)
    statistics, cpu = summary(np.array(rows)), time.process_time() - began
    print(report(args.body, args.aggregator, statistics, (args.runs, args.folds), cpu))
    if args.json:
        figures = {
            "body": args.body,
            "aggregator": args.aggregator,
            "settings": asdict(settings),
            **statistics,
            "accuracies": rows,
            "cpu_seconds": cpu,
        }
        write_text(args.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
