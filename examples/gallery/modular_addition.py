"""Sums modulo 23 from an embedding and one hidden layer: the smallest network that groks.

python examples/gallery/modular_addition.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback

P = 23


class ModularSums(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(P, 64), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, P))

    def forward(self, pairs):
        return self.net(pairs)

    def training_step(self, batch, batch_idx):
        pairs, sums = batch
        return F.cross_entropy(self(pairs), sums)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1.0)


seed_everything(0)
pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))[torch.randperm(P * P)]
sums = pairs.sum(1) % P
train, test = TensorDataset(pairs[:320], sums[:320]), TensorDataset(pairs[320:], sums[320:])

callbacks = [LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()]
trainer = Trainer(max_steps=10_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(ModularSums(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=209))
print(f"picture: {trainer.log_dir}/timeline.png")
