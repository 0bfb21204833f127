"""Pictures of slices, and films of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lc_callback.functional.partition import SlicePartition
from lc_callback.reporting.figure import pixels_of
from lc_callback.run.files import beside

__all__ = ["draw_slices", "film"]

_FRAMES = 6  # in the strip
_MILLISECONDS = 600  # of a frame of the GIF
_TITLES = ("through three points", "toward the nearest boundary")


def draw_slices(slices: Sequence[SlicePartition], titles: Sequence[str] = _TITLES) -> Any:
    """The slices side by side, each with its title, as pixels ``(H, W, 3)``."""

    def draw(figure: Any) -> None:
        figure.set_size_inches(5 * len(slices), 5.2)
        figure.set_layout_engine("constrained")
        for ax, one, title in zip(figure.subplots(1, len(slices), squeeze=False)[0], slices, titles, strict=False):
            one.plot(ax)
            ax.set_title(f"{title}: {one.n_regions:,} regions", fontsize=10)

    return pixels_of(draw)[0]


def film(frames: Sequence[tuple[int, Path]], strip: Path, gif: Path) -> Any:
    """Put pictures together: some of them to a strip, all of them to an animated GIF, each with its step.

    Args:
        frames: step and file of each, in order.
        strip: where the strip goes.
        gif: where the GIF goes.

    Returns:
        The strip as pixels ``(H, W, 3)``.
    """
    from PIL import Image, ImageDraw

    images = []
    for step, path in frames:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        image = Image.new("RGB", (picture.width, picture.height + 24), "white")
        image.paste(picture, (0, 24))
        ImageDraw.Draw(image).text((10, 6), f"step {step:,}", fill="black", font_size=15)
        images.append(image)
    with beside(gif) as part:
        images[0].save(part, format="GIF", save_all=True, append_images=images[1:], duration=_MILLISECONDS, loop=0)
    n = min(_FRAMES, len(images))
    shown = [images[round(i * (len(images) - 1) / max(1, n - 1))] for i in range(n)]
    width, height = max(i.width for i in shown) // 2, max(i.height for i in shown) // 2
    columns = min(3, n)
    whole = Image.new("RGB", (columns * width, -(-n // columns) * height), "white")
    for i, image in enumerate(shown):
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        whole.paste(small, ((i % columns) * width, (i // columns) * height))
    with beside(strip) as part:
        whole.save(part, format="PNG")
    return np.asarray(whole)
