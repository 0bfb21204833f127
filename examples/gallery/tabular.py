"""An MLP with dropout on a table: is a tumour benign, by 30 measurements of its cells?

python examples/gallery/tabular.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback


class TabularMLP(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(30, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(128, 2),
        )

    def forward(self, rows):
        return self.net(rows)

    def training_step(self, batch, batch_idx):
        rows, labels = batch
        return F.cross_entropy(self(rows), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


seed_everything(0)
rows, labels = load_breast_cancer(return_X_y=True)
order = torch.randperm(len(rows))
x, y = torch.tensor(rows).float()[order], torch.tensor(labels)[order]
x = (x - x[:300].mean(0)) / x[:300].std(0)
train, test = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:])

callbacks = [LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()]
trainer = Trainer(max_steps=10_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(TabularMLP(), DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=50))
print(f"picture: {trainer.log_dir}/timeline.png")
