"""Regression on a table: the progress of diabetes in a year, by ten measurements; far more weights than patients.

python examples/gallery/regression.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback


class RegressionMLP(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1))

    def forward(self, rows):
        return self.net(rows)

    def training_step(self, batch, batch_idx):
        rows, targets = batch
        return F.mse_loss(self(rows)[:, 0], targets)

    def validation_step(self, batch, batch_idx):
        rows, targets = batch
        self.log("test_loss", F.mse_loss(self(rows)[:, 0], targets))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


seed_everything(0)
rows, targets = load_diabetes(return_X_y=True, scaled=False)
order = torch.randperm(len(rows))
x, y = torch.tensor(rows).float()[order], torch.tensor(targets).float()[order]
x, y = (x - x[:300].mean(0)) / x[:300].std(0), (y - y[:300].mean()) / y[:300].std()
train, test = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])

callbacks = [LocalComplexityCallback(), FeatureRankCallback()]  # accuracy under attack needs classes
trainer = Trainer(max_steps=10_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(RegressionMLP(), DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=142))
print(f"picture: {trainer.log_dir}/timeline.png")
