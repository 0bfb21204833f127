"""One adapter for each kind of logger: how it takes a text, a picture and a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lc_callback.reporting.figure import pixels_of
from lc_callback.reporting.layout import elided
from lc_callback.tensorboard.summary import events_summary

__all__ = ["Adapter", "adapter_of"]

_BINS = 64  # of a histogram that is drawn
_MOST_AT_ONCE = 500  # numbers in one request to MLflow, which takes no more than 1,000


class Adapter:
    """What all loggers have in common: they take numbers.

    Args:
        logger: a logger of Lightning.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def row(self, row: Mapping[str, float], step: int) -> None:
        """Numbers by key."""
        self.logger.log_metrics(dict(row), step=step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text in Markdown."""

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """Pixels ``(H, W, 3)``, 0 to 255."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """The distribution of values. Drawn, unless the logger draws histograms itself."""
        self.image(tag, _drawn(tag, values), step)

    def layout(self, layout: dict[str, Any]) -> None:
        """Which curves share a chart: TensorBoard's custom scalars."""

    def events(self, events: Sequence[Mapping[str, Any]], step: int) -> None:
        """All events of the run so far."""

    @property
    def _experiment(self) -> Any:
        return self.logger.experiment


class SummaryWriter(Adapter):
    """TensorBoard, and any logger with an experiment that has some of the methods of its ``SummaryWriter``.

    Loggers that nothing is known of have none, and take numbers only.
    """

    def text(self, tag: str, markdown: str, step: int) -> None:
        """In the tab of texts."""
        self._call("add_text", tag, markdown, step)

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """In the tab of images."""
        self._call("add_image", tag, pixels, step, dataformats="HWC")

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """In the tabs of histograms and distributions."""
        self._call("add_histogram", tag, values, step)

    def layout(self, layout: dict[str, Any]) -> None:
        """In the tab of custom scalars."""
        self._call("add_custom_scalars", layout)

    def events(self, events: Sequence[Mapping[str, Any]], step: int) -> None:
        """For the Dynamics tab. Only torch's writer takes summaries of TensorBoard."""
        writer: Any = getattr(self.logger, "experiment", None)
        if any(base.__module__.startswith("torch.utils.tensorboard") for base in type(writer).__mro__):
            writer.file_writer.add_summary(events_summary(events), step)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        method = getattr(getattr(self.logger, "experiment", None), name, None)
        if method is not None:
            method(*args, **kwargs)


class Wandb(Adapter):
    """Weights & Biases. Lightning puts the step beside each entry, as ``trainer/global_step``."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A table of one row."""
        self.logger.log_text(tag, columns=["step", "text"], data=[[step, markdown]], step=step)

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """A panel with a slider for the steps."""
        self.logger.log_image(tag, [np.asarray(pixels)], step=step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """A panel of histograms."""
        import wandb

        finite = _finite(values)
        if len(finite):
            self.logger.log_metrics({tag: wandb.Histogram(finite.tolist())}, step=step)


class MLFlow(Adapter):
    """MLflow: texts are artifacts, ``<tag>_<step>.md``; pictures have a slider for the steps."""

    def row(self, row: Mapping[str, float], step: int) -> None:
        """In parts that one request may have."""
        entries = list(row.items())
        for start in range(0, len(entries), _MOST_AT_ONCE):
            super().row(dict(entries[start : start + _MOST_AT_ONCE]), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """An artifact."""
        self._experiment.log_text(self.logger.run_id, markdown, f"{tag}_{step:09d}.md")

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """A picture of this step."""
        self._experiment.log_image(self.logger.run_id, np.asarray(pixels), key=tag, step=step)


class Comet(Adapter):
    """Comet."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """In the tab of texts, which has no names: the tag stands above it."""
        self._experiment.log_text(f"**{tag}**\n\n{markdown}", step=step, metadata={"tag": tag})

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """In the tab of graphics."""
        self._experiment.log_image(np.asarray(pixels), name=tag, step=step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """In the tab of histograms."""
        finite = _finite(values)
        if len(finite):
            self._experiment.log_histogram_3d(finite, name=tag, step=step)


class Neptune(Adapter):
    """Neptune: a series of texts and one of pictures for each tag."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """The next text of a series."""
        self._experiment[self._path(tag)].append(markdown, step=step)

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """The next picture of a series."""
        from PIL import Image

        self._experiment[self._path(tag)].append(Image.fromarray(np.asarray(pixels)), step=step)

    def _path(self, tag: str) -> str:
        prefix = getattr(self.logger, "_prefix", "")
        return f"{prefix}/{tag}" if prefix else tag


# By the name of the logger's class, so that nothing of theirs has to be installed; subclasses are of the same kind.
_KINDS: dict[str, type[Adapter]] = {
    "WandbLogger": Wandb,
    "MLFlowLogger": MLFlow,
    "CometLogger": Comet,
    "NeptuneLogger": Neptune,
}


def adapter_of(logger: Any) -> Adapter:
    """The adapter of a logger: by its class or one that it inherits from, else that of TensorBoard."""
    for base in type(logger).__mro__:
        if base.__name__ in _KINDS:
            return _KINDS[base.__name__](logger)
    return SummaryWriter(logger)


def _finite(values: Tensor) -> np.ndarray[Any, Any]:
    """The values that are numbers, flat."""
    flat = values.detach().flatten().double().cpu().numpy()
    return flat[np.isfinite(flat)]


def _drawn(title: str, values: Tensor) -> np.ndarray[Any, Any]:
    def draw(figure: Any) -> None:
        figure.set_size_inches(6, 3.5)
        figure.set_layout_engine("constrained")
        ax = figure.subplots()
        ax.hist(_finite(values), bins=_BINS, color="tab:blue")
        ax.set_title(elided(title, 5.0, 10), loc="left", fontsize=10, parse_math=False)
        ax.set_ylabel("number")
        ax.spines[["top", "right"]].set_visible(False)

    return pixels_of(draw)[0]
