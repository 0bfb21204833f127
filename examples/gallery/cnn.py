"""A small CNN with batch normalisation on handwritten digits of 8 x 8 pixels.

python examples/gallery/cnn.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback


class DigitsCNN(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


seed_everything(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(images))
x, y = torch.tensor(images / 16).float().view(-1, 1, 8, 8)[order], torch.tensor(labels)[order]
train, test = TensorDataset(x[:1000], y[:1000]), TensorDataset(x[1000:], y[1000:])

callbacks = [LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()]
trainer = Trainer(max_steps=2_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(DigitsCNN(), DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=50))
print(f"picture: {trainer.log_dir}/timeline.png")
