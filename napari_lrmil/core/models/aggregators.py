"""Published aggregators for the HR teacher: mean and max pooling, ABMIL, CLAM-SB, DSMIL, TransMIL.

Own implementations: torchmil 1.0.2 has one logit, so two classes at most, and its losses and layers differ from the
published ones (docs/explanation/decisions.md). The tests compare with it wherever it computes the published formula.

Sizes follow from `hidden`, so that the default of 64 gives the published ones.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.models.card import (
    ABMIL,
    CLAM_SB,
    DSMIL,
    GATED,
    LINEAR,
    MAX,
    MEAN,
    POOLED_SHARES,
    TRANSMIL,
    Aggregator,
)
from napari_lrmil.core.models.mil import MIL, GatedAttentionMIL, LinearTopkMIL, MilOutput
from napari_lrmil.core.models.pooling import BagOutput, NetworkWeights, Rows

CLAM_DROPOUT, TRANSMIL_DROPOUT = 0.25, 0.1  # of the authors' code
CLAM_TOP = 8  # instances of the top and of the bottom that the instance term compares
CLAM_INSTANCE_WEIGHT = 0.3 / 0.7  # weights of the instance and the label term
TRANSMIL_HEADS, PINV_STEPS, VALUE_KERNEL = 8, 6, 33
ATTENTION_FLOOR = 1e-3  # relative to 1 / N: the Nyström approximation gives negative weights, which have no logarithm


class MeanMIL(LinearTopkMIL):
    """Mean pooling and a linear classifier: `LinearTopkMIL` with all instances in the top."""

    aggregator = MEAN

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes, POOLED_SHARES[MEAN])


class MaxMIL(LinearTopkMIL):
    """Max pooling of the instances' class scores: `LinearTopkMIL` with one instance in the top of each class."""

    aggregator = MAX

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes, POOLED_SHARES[MAX])


class WholeBagMIL(MIL):
    """Base of the aggregators that read a bag at once; their memory grows with its instances."""

    def weights(self) -> NetworkWeights:
        """Return the network itself: it has no form in NumPy."""
        return NetworkWeights(self)

    def pool_whole(self, features: Rows) -> BagOutput:
        """Return the output for (N, D) features, without gradients and where the weights are.

        Raises
        ------
        RuntimeError
            If the network is in training mode, in which dropout makes outputs random.
        """
        instances = self._read_rows(features)
        with torch.inference_mode():
            output = self(instances)
            evidence = self.evidence(instances, output.attention)
        arrays = (x.float().cpu().numpy() for x in (output.logits, output.attention, output.scores, evidence))
        return BagOutput(*arrays)

    def score_patches(self, features: Rows) -> Features | None:
        """Return (N, C) raw class scores of each of (N, D) patches; None if the aggregator has none."""
        with torch.inference_mode():
            scores: Features = self.patch_logits(self._read_rows(features)).float().cpu().numpy()
        return scores

    def _read_rows(self, features: Rows) -> Tensor:
        if self.training:
            raise RuntimeError("the aggregator is in training mode; call eval() before it pools a bag")
        rows = np.array(features[0 : features.shape[0]], np.float32)
        return torch.from_numpy(rows).to(self.mean.device)


class _AttentionMIL(WholeBagMIL):
    """Base of ABMIL and CLAM-SB: one attention, and a linear classifier on the weighted mean."""

    def forward(self, instances: Tensor) -> MilOutput:
        """Classify one bag of (N, D) instances."""
        h = self.embed(instances)  # (N, E)
        scores = self.score(h)
        attention = torch.softmax(scores, dim=0)
        bag = attention @ h
        return MilOutput(self.classifier(bag), bag, attention, scores, embedded=h)

    @abstractmethod
    def embed(self, instances: Tensor) -> Tensor:
        """Return (N, E) embedded instances of (N, D)."""

    @abstractmethod
    def score(self, h: Tensor) -> Tensor:
        """Return (N,) attention scores of (N, E) embedded instances."""

    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C) contributions to the centred logits, see `MIL.evidence`."""
        weight = self.classifier.weight
        return attention[:, None] * (self.embed(instances) @ (weight - weight.mean(dim=0)).T)

    def patch_logits(self, instances: Tensor) -> Tensor:
        """Return (N, C) raw class scores of each of (N, D) instances."""
        logits: Tensor = self.classifier(self.embed(instances))
        return logits


class AttentionMIL(_AttentionMIL):
    """ABMIL without a gate (Ilse et al., ICML 2018, arXiv 1802.04712): ``s_k = w·tanh(V t_k)``, ``V`` of 2 `hidden`.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        Half the width of the attention.
    """

    aggregator = ABMIL

    def __init__(self, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__(dim, classes, hidden)
        self.V = nn.Linear(dim, 2 * hidden)
        self.w = nn.Linear(2 * hidden, 1, bias=False)
        self.classifier = nn.Linear(dim, classes)

    def embed(self, instances: Tensor) -> Tensor:
        """Return (N, D) standardised instances."""
        return self.standardise(instances)

    def score(self, h: Tensor) -> Tensor:
        """Return (N,) attention scores."""
        scores: Tensor = self.w(torch.tanh(self.V(h))).squeeze(-1)
        return scores


class ClamSbMIL(_AttentionMIL):
    """CLAM with a single branch (Lu et al., Nature Biomedical Engineering 2021, arXiv 2004.09666).

    Instances are embedded by ``relu(F t_k)`` of width 8 `hidden`, gated attention has width 4 `hidden`. In training a
    classifier for the slide's class must tell its `CLAM_TOP` instances of most attention from those of least.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        A quarter of the width of the gate.
    """

    aggregator = CLAM_SB

    def __init__(self, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__(dim, classes, hidden)
        width, gate = 8 * hidden, 4 * hidden
        self.embedding = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(CLAM_DROPOUT))
        self.V = nn.Sequential(nn.Linear(width, gate), nn.Tanh(), nn.Dropout(CLAM_DROPOUT))
        self.U = nn.Sequential(nn.Linear(width, gate), nn.Sigmoid(), nn.Dropout(CLAM_DROPOUT))
        self.w = nn.Linear(gate, 1, bias=False)  # the softmax over instances cancels a constant
        self.classifier = nn.Linear(width, classes)
        self.instance_classifiers = nn.ModuleList(nn.Linear(width, 2) for _ in range(classes))

    def embed(self, instances: Tensor) -> Tensor:
        """Return (N, 8 `hidden`) embedded instances."""
        embedded: Tensor = self.embedding(self.standardise(instances))
        return embedded

    def score(self, h: Tensor) -> Tensor:
        """Return (N,) attention scores."""
        scores: Tensor = self.w(self.V(h) * self.U(h)).squeeze(-1)
        return scores

    def own_terms(self, output: MilOutput, target: int) -> Mapping[str, Tensor]:
        """Return the instance term: the class's instances of most attention against those of least."""
        assert output.embedded is not None
        count = min(CLAM_TOP, len(output.scores) // 2)  # in a small bag top and bottom must not overlap
        if count == 0:
            return {"instances": output.logits.sum() * 0}
        ends = [torch.topk(sign * output.scores, count).indices for sign in (1, -1)]
        logits = self.instance_classifiers[target](output.embedded[torch.cat(ends)])
        is_top = torch.arange(2 * count, device=logits.device) < count
        return {"instances": CLAM_INSTANCE_WEIGHT * functional.cross_entropy(logits, is_top.long())}


class DualStreamMIL(WholeBagMIL):
    """DSMIL (Li et al., CVPR 2021, arXiv 2011.08939): the mean of an instance stream and a bag stream.

    For each class the instance with the greatest class score is critical. Attention of a class is the softmax of the
    products of all queries with that of its critical instance. The bags of all classes give the logits of the bag
    stream, the critical instances those of the instance stream; the label term is the mean over both.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        Half the width of a query.
    """

    aggregator = DSMIL

    def __init__(self, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__(dim, classes, hidden)
        width = 2 * hidden
        self.classifier = nn.Linear(dim, classes)
        self.query = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
        self.bag_classifier = nn.Conv1d(classes, classes, kernel_size=dim)  # each logit from the bags of all classes

    def forward(self, instances: Tensor) -> MilOutput:
        """Classify one bag of (N, D) instances."""
        t = self.standardise(instances)
        log_attention, critical = self._attend(t)
        bags = log_attention.exp().T @ t  # (C, D)
        streams = torch.stack([self.bag_classifier(bags[None]).reshape(-1), critical])  # (2, C)
        logits = streams.mean(dim=0)
        # Detached, as in `LinearTopkMIL`: attention shows the decision.
        shares = torch.log_softmax(logits, dim=0).detach()
        scores = torch.logsumexp(log_attention + shares, dim=1)
        attention = torch.softmax(scores, dim=0)
        return MilOutput(logits, attention @ t, attention, scores, label_logits=streams)

    def _attend(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, C) logarithms of the attention of each class, and (C,) class scores of the critical instances."""
        critical, rows = self.classifier(t).max(dim=0)
        queries = self.query(t)  # (N, Q)
        products = queries @ queries[rows].T / math.sqrt(queries.shape[1])
        return torch.log_softmax(products, dim=0), critical

    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C) contributions to the centred logits, from both streams. They do not need `attention`."""
        t = self.standardise(instances)
        log_attention, _ = self._attend(t)
        of_instances = self.classifier(t) - self.classifier.bias
        is_critical = torch.zeros_like(of_instances).scatter(0, of_instances.argmax(dim=0, keepdim=True), 1.0)
        weight = self.bag_classifier.weight  # (C, C, D), the logit first
        of_bags = torch.stack([((t @ w.T) * log_attention.exp()).sum(dim=1) for w in weight], dim=1)
        contributions: Tensor = (of_bags + of_instances * is_critical) / 2
        return contributions - contributions.mean(dim=1, keepdim=True)

    def patch_logits(self, instances: Tensor) -> Tensor:
        """Return (N, C) raw class scores of each of (N, D) instances: the logits of a bag that holds it alone."""
        t = self.standardise(instances)
        of_bags = functional.linear(t, self.bag_classifier.weight.sum(dim=1), self.bag_classifier.bias)
        logits: Tensor = (of_bags + self.classifier(t)) / 2
        return logits

    @property
    def centred_bias(self) -> Tensor:
        """(C,) centred logit without any evidence."""
        assert self.bag_classifier.bias is not None
        bias: Tensor = (self.classifier.bias + self.bag_classifier.bias) / 2
        return bias - bias.mean()


class TransMIL(WholeBagMIL):
    """TransMIL (Shao et al., NeurIPS 2021, arXiv 2106.00908): two Nyström attention layers and positions between them.

    Width is 8 `hidden`, with 8 heads and half as many landmarks as the width. Instances are laid out as a square in
    their order, which is where their position comes from; the first are repeated to fill it.

    Parameters
    ----------
    dim
        Width D of an instance.
    classes
        Number of classes C.
    hidden
        Width of a head.
    """

    aggregator = TRANSMIL

    def __init__(self, dim: int, classes: int, hidden: int = 64) -> None:
        super().__init__(dim, classes, hidden)
        width = TRANSMIL_HEADS * hidden
        self.embedding = nn.Sequential(nn.Linear(dim, width), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.layers = nn.ModuleList(NystromAttention(width, TRANSMIL_HEADS, width // 2) for _ in range(2))
        self.positions = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, instances: Tensor) -> MilOutput:
        """Classify one bag of (N, D) instances."""
        count = len(instances)
        h = self.embedding(self.standardise(instances))
        side = math.ceil(math.sqrt(count))
        repeated = side * side - count
        x = torch.cat([self.class_token, h, h[:repeated]])  # (1 + side², W)
        x = x + self.layers[0](self.norms[0](x))[0]
        x = torch.cat([x[:1], self._add_positions(x[1:], side)])
        change, row = self.layers[1](self.norms[1](x))
        token = self.norm((x + change)[0])
        scores = _scores_of_attention(row[1:], count)
        return MilOutput(self.classifier(token), token, torch.softmax(scores, dim=0), scores)

    def _add_positions(self, x: Tensor, side: int) -> Tensor:
        """Return (side², W) tokens with convolutions of their square added."""
        square = x.T.reshape(1, -1, side, side)
        for convolution in self.positions:
            square = square + convolution(x.T.reshape(1, -1, side, side))
        return square.reshape(-1, side * side).T

    def evidence(self, instances: Tensor, attention: Tensor) -> Tensor:
        """Return (N, C) NaN: a transformer's logit is no sum over instances."""
        return torch.full((len(instances), self.classes), float("nan"), device=instances.device)

    def patch_logits(self, instances: Tensor) -> Tensor:
        """Raise `NotImplementedError`: each instance would be a bag for the whole transformer."""
        raise NotImplementedError("TransMIL has no class scores of single patches; set lambda_patch=0")

    def score_patches(self, features: Rows) -> None:
        """Return None: there are no class scores of single patches."""
        return


def _scores_of_attention(row: Tensor, count: int) -> Tensor:
    """Return (N,) logarithms of the class token's attention; that to a repeated instance is added to its own."""
    attention = row[:count].clone()
    repeated = row[count:]
    attention[: len(repeated)] += repeated
    return torch.log(attention.clamp(min=ATTENTION_FLOOR / count))


class NystromAttention(nn.Module):
    """Self-attention over landmarks (Xiong et al., AAAI 2021, arXiv 2102.03902), with a convolution of the values.

    As in the code that TransMIL uses: tokens are padded in front by zeros to a multiple of the landmarks, each landmark
    is the mean of neighbouring tokens, and the pseudo-inverse is iterated.

    Parameters
    ----------
    width
        Width W of a token.
    heads
        Number of heads.
    landmarks
        Number of landmarks M.
    """

    def __init__(self, width: int, heads: int, landmarks: int) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Conv2d(heads, heads, (VALUE_KERNEL, 1), padding=(VALUE_KERNEL // 2, 0), groups=heads, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(TRANSMIL_DROPOUT))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (T, W) outputs of (T, W) tokens, and (T,) attention of the first token, the mean over heads."""
        count = len(tokens)
        with torch.autocast(tokens.device.type, enabled=False):  # the iteration diverges in half precision
            x = functional.pad(tokens.float(), (0, 0, -count % self.landmarks, 0))
            q, k, v = (self._split_heads(part) for part in self.qkv(x).chunk(3, dim=-1))  # (H, P, W / H)
            q = q / math.sqrt(q.shape[-1])
            q_marks, k_marks = self._mean_landmarks(q), self._mean_landmarks(k)
            to_marks = torch.softmax(q @ k_marks.mT, dim=-1)  # (H, P, M)
            from_marks = torch.softmax(q_marks @ k.mT, dim=-1)  # (H, M, P)
            inverse = _pseudo_inverse(torch.softmax(q_marks @ k_marks.mT, dim=-1))
            mixed = (to_marks @ inverse) @ (from_marks @ v) + self.mix(v[None])[0]
            outputs: Tensor = self.out(mixed.transpose(0, 1).reshape(len(x), -1)[-count:])
            # One row only: the whole matrix would have as many entries as tokens squared.
            first = len(x) - count
            row = (to_marks[:, first : first + 1] @ inverse @ from_marks).detach()
        return outputs, row.mean(dim=0)[0, -count:]

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)

    def _mean_landmarks(self, x: Tensor) -> Tensor:
        return x.reshape(self.heads, self.landmarks, -1, x.shape[-1]).mean(dim=2)


def _pseudo_inverse(x: Tensor) -> Tensor:
    """Return the iterated Moore-Penrose inverse of (H, M, M) matrices."""
    z = x.mT / (x.abs().sum(dim=-1).max() * x.abs().sum(dim=-2).max())
    identity = torch.eye(x.shape[-1], device=x.device)
    for _ in range(PINV_STEPS):
        xz = x @ z
        z = 0.25 * z @ (13 * identity - xz @ (15 * identity - xz @ (7 * identity - xz)))
    return z


def build_aggregator(
    aggregator: Aggregator, dim: int, classes: int, hidden: int, top_share: float | None = None
) -> MIL:
    """Return an untrained MIL.

    Parameters
    ----------
    aggregator
        Its name in configurations and cards.
    dim, classes
        Width of an instance, and number of classes.
    hidden
        Width of the attention, from which other sizes follow.
    top_share
        Of ``linear_topk``; others ignore it.
    """
    if aggregator == LINEAR:
        assert top_share is not None
        return LinearTopkMIL(dim, classes, top_share)
    if aggregator in (MEAN, MAX):
        return MeanMIL(dim, classes) if aggregator == MEAN else MaxMIL(dim, classes)
    networks: dict[Aggregator, type[GatedAttentionMIL | AttentionMIL | ClamSbMIL | DualStreamMIL | TransMIL]] = {
        GATED: GatedAttentionMIL,
        ABMIL: AttentionMIL,
        CLAM_SB: ClamSbMIL,
        DSMIL: DualStreamMIL,
        TRANSMIL: TransMIL,
    }
    return networks[aggregator](dim, classes, hidden)
