"""A small vision transformer on handwritten digits: 16 patches of 2 x 2 pixels, two blocks, GELU.

python examples/gallery/vit.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback


class SmallViT(LightningModule):
    def __init__(self, width=32):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.1 * torch.randn(16, width))
        block = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(tokens).mean(1))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1)


seed_everything(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(images))
x, y = torch.tensor(images / 16).float().view(-1, 1, 8, 8)[order], torch.tensor(labels)[order]
train, test = TensorDataset(x[:1000], y[:1000]), TensorDataset(x[1000:], y[1000:])

callbacks = [LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()]
trainer = Trainer(max_steps=2_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(SmallViT(), DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=50))
print(f"picture: {trainer.log_dir}/timeline.png")
