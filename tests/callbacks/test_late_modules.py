"""Networks that do not exist when the Trainer begins: `setup()` and `configure_model()` make them."""

import pytest
from helpers import KINDS, Classifier, loader, make_trainer, mlp, tiny
from lightning.pytorch import LightningDataModule
from torch import nn

pytestmark = pytest.mark.usefixtures("no_timeline")


class Late(Classifier):
    def __init__(self, where):
        super().__init__(nn.Identity())
        del self.net
        self.where = where

    def setup(self, stage):
        if self.where == "setup":
            self.net = mlp()

    def configure_model(self):
        if self.where == "configure_model":
            self.net = mlp()
        if self.where == "nested":
            self.net = nn.ModuleDict({"body": mlp()})

    def loss(self, batch):
        net = self.net["body"] if self.where == "nested" else self.net
        return nn.functional.cross_entropy(net(batch[0]), batch[1])


class SizedByData(Late):
    """The data say how large it is, once they are set up."""

    def setup(self, stage):
        self.net = mlp(self.trainer.datamodule.width)

    def configure_model(self):
        pass


class Data(LightningDataModule):
    def setup(self, stage):
        self.width = 5

    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader


PLACES = {
    "setup": (lambda: Late("setup"), "net"),
    "configure_model": (lambda: Late("configure_model"), "net"),
    "nested": (lambda: Late("nested"), "net.body"),
    "sized by data": (lambda: SizedByData("nowhere"), "net"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_network_that_is_made_late_is_measured(place, kind, tmp_path):
    make, name = PLACES[place]
    callback = tiny(kind, submodule=name)
    make_trainer(tmp_path, callback, max_steps=2).fit(make(), datamodule=Data())
    assert callback.history.steps == [0, 1, 2]


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_is_never_made_ends_the_run_before_anything_runs(place, tmp_path):
    module = PLACES[place][0]()
    checked = make_trainer(tmp_path, tiny("lc", submodule="body"), max_steps=2, num_sanity_val_steps=1)
    with pytest.raises(ValueError, match=r"`submodule='body'` is not the name of a module.* Modules: net"):
        checked.fit(module, datamodule=Data())
    assert module.steps_taken == 0
    assert not checked.logged_metrics  # no validation either
