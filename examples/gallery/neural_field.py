"""A neural field: a network from a place (x, y) to the brightness there. Do its regions move to the edge of a disc?

python examples/gallery/neural_field.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback


class NeuralField(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
            nn.Linear(128, 1),
        )

    def forward(self, places):
        return self.net(places)

    def training_step(self, batch, batch_idx):
        places, brightness = batch
        return F.mse_loss(self(places), brightness)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


seed_everything(0)
places, angle = 2 * torch.rand(4096, 2) - 1, 2 * torch.pi * torch.rand(512)
train = TensorDataset(places, (places.norm(dim=1, keepdim=True) < 0.6).float())
edge = TensorDataset(0.6 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((512, 1), 0.5))

# Of points as dense as these "auto" makes a radius of 0.002. Accuracy under attack needs classes.
callbacks = [LocalComplexityCallback(radius=0.02), FeatureRankCallback()]
trainer = Trainer(max_steps=5_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(NeuralField(), DataLoader(train, batch_size=256, shuffle=True), DataLoader(edge, batch_size=256))
print(f"picture: {trainer.log_dir}/timeline.png")
