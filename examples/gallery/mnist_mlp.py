"""An MLP on 1,000 images of MNIST, as in the first experiment of *Deep Networks Always Grok and Here is Why*.

python examples/gallery/mnist_mlp.py ../data    # the folder with MNIST/raw
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback

sys.path.append(str(Path(__file__).parents[1]))
from data import MNIST, MissingDataError  # examples/data.py reads the files


class MnistMLP(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()),
            *(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.mse_loss(self(images), F.one_hot(labels, 10).float())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


seed_everything(0)
try:
    train, test = MNIST(sys.argv[1] if len(sys.argv) > 1 else "data", n_train=1000).load()
except MissingDataError as error:
    sys.exit(f"MNIST is not there. {error}")
callbacks = [LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()]
trainer = Trainer(max_steps=3_000, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False)
trainer.fit(MnistMLP(), DataLoader(train, batch_size=200, shuffle=True), DataLoader(test, batch_size=200))
print(f"picture: {trainer.log_dir}/timeline.png")
