"""A small residual network on pictures that are made here: which of four shapes, in any colour, at any place?

python examples/gallery/resnet.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.skip(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class SmallResNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 8, 2), Block(8, 16, 2), Block(16, 32, 2))
        self.head = nn.Linear(32, 4)

    def forward(self, images):
        return self.head(self.blocks(images).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def shapes(n):
    """A square, a disc, a cross or a ring ``(n, 3, 16, 16)`` on a background of another colour, with noise."""
    labels = torch.randint(4, (n,))
    x, y = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    dx, dy = ((axis - torch.randint(5, 11, (n, 1, 1))).abs() for axis in (x, y))
    far = (dx**2 + dy**2).sqrt()
    kinds = torch.stack([torch.maximum(dx, dy) < 4, far < 4.5, torch.minimum(dx, dy) < 1.5, (far > 2.5) & (far < 5)])
    inside = kinds[labels, torch.arange(n)][:, None] & (torch.maximum(dx, dy) < 5)[:, None]
    colours = torch.rand(2, n, 3, 1, 1)
    return TensorDataset((torch.where(inside, *colours) + 0.1 * torch.randn(n, 3, 16, 16)).clamp(0, 1), labels)


seed_everything(0)
train, test = shapes(1000), shapes(1000)
callbacks = [LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()]
trainer = Trainer(max_steps=1_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(SmallResNet(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=64))
print(f"picture: {trainer.log_dir}/timeline.png")
