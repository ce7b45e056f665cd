"""Losses of the distillation stages (arXiv 2606.06864). Shapes: B batch, n² children, D width, N LR patches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

AttentionTransfer = Literal["logsumexp", "mean", "max"]


def children_weights(scores: Tensor, present: Tensor) -> Tensor:
    """Return ``ã``, the (B, n²) softmax of the teacher's scores over the existing children.

    It is computed from scores, because probabilities of a whole slide can underflow, and their ratio is then lost.

    Parameters
    ----------
    scores
        (B, n²) attention scores of the teacher. Values of missing children do not matter.
    present
        (B, n²) bool: the child exists. At least one per row.
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
        (B, n²) from `children_weights`, zero for missing children.
    """
    squared = (embedding[:, None] - targets).square().mean(dim=-1)  # (B, n²)
    return (weights * squared).sum(dim=-1).mean()


def child_blocks(tokens: Tensor, n: int) -> Tensor:
    """Return (B, n², C): the mean over the block of tokens that each child covers, row by row.

    Parameters
    ----------
    tokens
        (B, C, h, w) spatial map. A map too coarse for n x n blocks is resampled bilinearly to n x n cells. If a side
        is not a multiple of n, neighbouring blocks share the tokens on their border.
    n
        Number of children along a side.
    """
    if min(tokens.shape[-2:]) < n:
        cells = functional.interpolate(tokens, size=(n, n), mode="bilinear", align_corners=False)
    else:
        cells = functional.adaptive_avg_pool2d(tokens, (n, n))
    return cells.flatten(2).transpose(1, 2)


def layer_loss(projected: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Return one layer's ``L_layer = mean_k ‖P_l(mean_{j∈B_k} z_{r,j}) − t_k^l‖² / D`` over existing children.

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
    """Return the teacher's (N,) scores ``S_r`` of LR patches from the scores of their children.

    With ``logsumexp``, softmax(S) is exactly the sum of the teacher's attention over the children.

    Parameters
    ----------
    scores
        (K,) scores of HR patches.
    parent
        (K,) LR patch of each HR patch.
    parents
        Number of LR patches, N.
    transfer
        How scores of children become the score of the parent.
    """
    if transfer == "mean":
        totals = scores.new_zeros(parents).index_add(0, parent, scores)
        counts = torch.bincount(parent, minlength=parents)
        return torch.where(counts > 0, totals / counts.clamp(min=1), -torch.inf)
    top = scores.new_full((parents,), -torch.inf).scatter_reduce(0, parent, scores, "amax")
    if transfer == "max":
        return top
    # The maximum of each parent is subtracted before exp, which would overflow for large scores.
    sums = scores.new_zeros(parents).index_add(0, parent, torch.exp(scores - top[parent]))
    return top + torch.log(sums)


def bag_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``L_bag = T² · KL(softmax(logits_T / T) ‖ softmax(logits_S / T))`` for (C,) logits of one slide."""
    return _tempered_kl(student_logits, teacher_logits, temperature)


def attention_kl(student_scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
    """Return ``L_soft = T_a² · KL(softmax(S / T_a) ‖ softmax(s^S / T_a))`` over the (N,) LR patches of one slide.

    It is summed over patches, because a mean would vanish on large slides. Both sides have the same temperature.
    """
    return _tempered_kl(student_scores, teacher_scores, temperature)


def _tempered_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    # T² keeps gradients comparable between temperatures (Hinton et al. 2015).
    target = torch.log_softmax(teacher / temperature, dim=-1).clamp(min=torch.finfo(teacher.dtype).min)  # 0 log 0 is 0
    log_student = torch.log_softmax(student / temperature, dim=-1)
    return temperature**2 * functional.kl_div(log_student, target, reduction="sum", log_target=True)


def patch_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Return ``L_patch``: cross-entropy of the patches' class scores against class shares, mean over patches.

    Parameters
    ----------
    logits
        (N, C) raw class scores of each patch.
    shares
        (N, C) share of the patch's area that is of each class; rows sum to 1. Without rows the loss is 0.
    """
    if len(shares) == 0:
        return logits.sum() * 0.0  # a zero that still has a gradient
    return functional.cross_entropy(logits, shares)


def hard_attention_loss(student_scores: Tensor, teacher_scores: Tensor, k: int) -> Tensor:
    """Return ``L_hard``: binary cross-entropy of the centred student scores, the teacher's top k against its bottom k.

    It acts on the scores of the MIL itself, so its gradient reaches the scores that inference uses. A slide with fewer
    than 2k patches has half of them on each side; with a single patch the loss is 0.
    """
    k = min(k, len(teacher_scores) // 2)
    if k == 0:
        return student_scores.sum() * 0.0  # a zero that still has a gradient
    order = torch.argsort(teacher_scores, descending=True, stable=True)
    centred = student_scores - student_scores.mean()
    selected = torch.cat([centred[order[:k]], centred[order[-k:]]])
    labels = torch.cat([torch.ones(k), torch.zeros(k)]).to(selected)
    return functional.binary_cross_entropy_with_logits(selected, labels)
