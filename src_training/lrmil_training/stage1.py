"""Stage 1: the student encoder learns, patch by patch, what the teacher saw in the children (docs/method.md 2.3)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lrmil_training import losses
from lrmil_training.config import TrainConfig
from lrmil_training.fitting import SELECT, FitPlan, fit, require_finite, set_epoch
from lrmil_training.pairs import Pair, PairDataset, TaughtSlide, collate
from napari_lrmil.core.embed import enlarge
from napari_lrmil.core.encoders import AlignedEncoder, require_layers
from napari_lrmil.core.events import Event


class Stage1(L.LightningModule):
    """``L_stage1 = λ_layer L_layer + λ_attn L_attn``; selection by the same loss on held-out patients.

    Parameters
    ----------
    student
        The encoder that learns.
    widths
        Layer name -> width of the teacher's pooled embedding there.
    config
        The run's configuration.
    """

    def __init__(self, student: AlignedEncoder, widths: Mapping[str, int], config: TrainConfig) -> None:
        super().__init__()
        require_layers(student.encoder, tuple(widths))
        self.student, self.settings = student, config
        # Learned even where widths agree: an identity on a late map pins the embedding to the children's plain mean.
        self.projections = nn.ModuleDict(
            {name: nn.Linear(student.layers[name], width) for name, width in widths.items()}
        )

    def terms(self, batch: Pair) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch."""
        stage, n = self.settings.stage1, self.settings.plan.n
        encoded = self.student(enlarge(batch.pixels, self.settings.student_input_px), tuple(self.projections))
        weights = losses.children_weights(batch.scores, batch.present)
        found = {"attn": stage.lambda_attn * losses.attention_weighted(encoded.embedding, batch.targets, weights)}
        for name, projection in self.projections.items():
            projected = projection(losses.blocks(encoded.maps[name], n))
            term = losses.layer(projected, batch.layers[name], batch.present)
            found[f"layer_{name}"] = stage.lambda_layer * term / len(self.projections)
        return found

    def training_step(self, batch: Pair, index: int) -> Tensor:
        """Return the loss of a batch."""
        return self._logged("train", batch, index)

    def validation_step(self, batch: Pair, index: int) -> None:
        """Log the loss on held-out patients, per layer, and the selection figure."""
        total = self._logged("val", batch, index)
        self.log(SELECT, -total, batch_size=len(batch.pixels))

    def _logged(self, side: str, batch: Pair, index: int) -> Tensor:
        terms = self.terms(batch)
        for name, value in terms.items():
            require_finite(name, value, index)
            self.log(f"{side}/{name}", value, on_step=False, on_epoch=True, batch_size=len(batch.pixels))
        return torch.stack(list(terms.values())).sum()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a one-cycle schedule."""
        stage = self.settings.stage1
        optimizer = torch.optim.AdamW(self.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Tell the data which epoch it is: every turn is a function of seed, epoch and index."""
        set_epoch(self.trainer.train_dataloader, self.current_epoch)


def fit_stage1(
    student: AlignedEncoder, taught: Mapping[str, Sequence[TaughtSlide]], config: TrainConfig, plan: FitPlan
) -> Generator[Event, None, AlignedEncoder]:
    """Distil into `student` and return it in its best state on validation, frozen."""
    data = {
        side: PairDataset(taught[side], config.plan, augment=config.stage1.augment and side == "train", seed=plan.seed)
        for side in ("train", "val")
    }
    widths = {name: values.shape[1] for name, values in taught["train"][0].layers.items()}

    def make() -> tuple[Stage1, DataLoader[Pair], DataLoader[Pair]]:
        order = torch.Generator().manual_seed(plan.seed)
        size = min(config.stage1.batch_size, len(data["train"]))
        train = DataLoader(data["train"], size, shuffle=True, generator=order, collate_fn=collate, drop_last=True)
        module = Stage1(student.requires_grad_(True), widths, config)
        return module, train, DataLoader(data["val"], config.stage1.batch_size, collate_fn=collate)

    try:
        state = yield from fit(make, plan)
    finally:
        for one in data.values():
            one.close()
    prefix = "student."
    student.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return student.cpu().eval().requires_grad_(False)
