"""The losses of both distillation stages (arXiv 2606.06864). Shapes: B batch, n² children, D width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

AttentionTransfer = Literal["logsumexp", "mean", "max"]


def children_weights(scores: Tensor, present: Tensor) -> Tensor:
    """Return ``ã``: softmax of the teacher's scores over the children that there are.

    Taken from the scores, not from ratios of probabilities, which may have underflowed.

    Parameters
    ----------
    scores
        (B, n²) teacher's attention scores, anything where there is no child.
    present
        (B, n²) bool, at least one per row.
    """
    return torch.softmax(scores.masked_fill(~present, -torch.inf), dim=-1)  # (B, n²)


def attention_weighted_loss(embedding: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return ``L_attn = Σ_k ã_k ‖P(z_r) − t_k‖² / D``, mean over the batch.

    Parameters
    ----------
    embedding
        (B, D) projected embedding of the LR patch.
    targets
        (B, n², D) teacher's embeddings of the children.
    weights
        (B, n²) from `children_weights`; zero where there is no child.
    """
    squared = (embedding[:, None] - targets).square().mean(dim=-1)  # (B, n²)
    return (weights * squared).sum(dim=-1).mean()


def child_blocks(tokens: Tensor, n: int) -> Tensor:
    """Return (B, n², C): the mean over the block of tokens that each child covers, row by row.

    Parameters
    ----------
    tokens
        (B, C, h, w) spatial map. One too coarse for n x n blocks is resampled bilinearly to n x n cells; where a
        side is no multiple of n, blocks share their tokens on the border.
    n
        Children along a side.
    """
    if min(tokens.shape[-2:]) < n:
        cells = functional.interpolate(tokens, size=(n, n), mode="bilinear", align_corners=False)
    else:
        cells = functional.adaptive_avg_pool2d(tokens, (n, n))
    return cells.flatten(2).transpose(1, 2)


def layer_loss(projected: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Return one layer's ``L_layer = mean_k ‖P_l(mean_{j∈B_k} z_{r,j}) − t_k^l‖² / D`` over children that exist.

    Parameters
    ----------
    projected
        (B, n², D) projected block means.
    targets
        (B, n², D) teacher's pooled embedding at that layer.
    present
        (B, n²) bool.
    """
    squared = (projected - targets).square().mean(dim=-1)  # (B, n²)
    share = present.to(squared) / present.sum(dim=-1, keepdim=True)
    return (squared * share).sum(dim=-1).mean()


def parent_scores(scores: Tensor, parent: Tensor, parents: int, transfer: AttentionTransfer = "logsumexp") -> Tensor:
    """Return (N,) the teacher's score ``S_r`` of each LR patch from the (K,) scores of its children.

    ``logsumexp`` makes softmax(S) the sum of the teacher's attention over the children, exactly.
    """
    if transfer == "mean":
        totals, counts = (
            scores.new_zeros(parents).index_add(0, parent, scores),
            torch.bincount(parent, minlength=parents),
        )
        return torch.where(counts > 0, totals / counts.clamp(min=1), -torch.inf)
    top = scores.new_full((parents,), -torch.inf).scatter_reduce(0, parent, scores, "amax")
    if transfer == "max":
        return top
    sums = scores.new_zeros(parents).index_add(0, parent, torch.exp(scores - top[parent]))
    return top + torch.log(sums)


def bag_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``L_bag = T² · KL(softmax(logits_T / T) ‖ softmax(logits_S / T))`` for (C,) logits of one slide."""
    return _tempered_kl(student_logits, teacher_logits, temperature)


def attention_kl(student_scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
    """Return ``L_soft = T_a² · KL(softmax(S / T_a) ‖ softmax(s^S / T_a))`` over the (N,) LR patches of one slide.

    Summed over patches: a mean would fade on large slides. Both sides carry the same temperature.
    """
    return _tempered_kl(student_scores, teacher_scores, temperature)


def _tempered_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    target = torch.log_softmax(teacher / temperature, dim=-1).clamp(min=torch.finfo(teacher.dtype).min)  # 0 log 0 is 0
    given = torch.log_softmax(student / temperature, dim=-1)
    return temperature**2 * functional.kl_div(given, target, reduction="sum", log_target=True)


def hard_attention_loss(student_scores: Tensor, teacher_scores: Tensor, k: int) -> Tensor:
    """Return ``L_hard``: binary cross-entropy of the centred student scores, the teacher's top k against its bottom k.

    It acts on the scores of the MIL itself, so its gradient reaches what inference uses. A slide with fewer than 2k
    patches gives half of them to each side; one with a single patch gives 0.
    """
    k = min(k, len(teacher_scores) // 2)
    if k == 0:
        return student_scores.sum() * 0.0
    order = torch.argsort(teacher_scores, descending=True, stable=True)
    centred = student_scores - student_scores.mean()
    picked = torch.cat([centred[order[:k]], centred[order[-k:]]])
    wanted = torch.cat([torch.ones(k), torch.zeros(k)]).to(picked)
    return functional.binary_cross_entropy_with_logits(picked, wanted)
