"""Local complexity: how many units switch inside a small neighbourhood of a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.counting.counter import share_of
from lc_callback.engine.counting.histogram import radius_at_rank
from lc_callback.engine.counting.result import SwitchCounts
from lc_callback.engine.counting.task import CountingTask
from lc_callback.engine.counting.zonotope import UpperBound
from lc_callback.engine.network.frame import steepest_share
from lc_callback.engine.network.modules import check_layers
from lc_callback.engine.network.space import Space
from lc_callback.isolation import untouched
from lc_callback.suggestions import did_you_mean

__all__ = [
    "LocalComplexity",
    "check_arguments",
    "check_method",
    "counting_task",
    "joined",
    "local_complexity",
    "share_of",
    "wrapped",
]

Z99 = 2.5758293035489004


@dataclass(frozen=True, eq=False)
class LocalComplexity:
    """Local complexity at ``N`` points, by layer.

    With several radii ``counts``, ``total``, ``mean`` and ``sem`` have a leading axis ``R``.

    Attributes:
        counts: ``(N, L)`` int64: units of each layer that switch inside the frame of each point. -1 where a
            pre-activation was not finite.
        layer_names: the ``L`` layers in execution order: module paths, ``#1``, ``#2``, ... if used repeatedly.
        layer_sizes: units of each layer.
        radius: the radius, or the list of radii.
        at: name of the module whose output was perturbed, ``None`` for the input.
        dtype: floating-point type of the computation.
        upper: as ``counts``, with ``bracket=True``: as many units at most switch anywhere in the hull of the frame.
        jacobian_norm: ``(M,)`` float64, with ``method="linear"``: the Frobenius norm of the Jacobian of the model's
            output at the first points, a quarter of all, at most 64; ``None`` where the output was not followed, see
            :attr:`total_variation`.
        dim: ``D``, of the space that was perturbed.
        n_directions: ``P``, of the frame; 0 if the directions were given.
        histogram: with ``method="linear"``: numbers of units, over all points and layers, by the leading 13 bits behind
            the sign of the critical radius as float32: the exponent, and 32 bins for a factor of two.
        uncounted: operations that choose a winner, such as max-pooling, which ``max_pool=True`` would count.
        route: how the points were followed, and why no faster way was taken, in one line.
    """

    counts: Tensor
    layer_names: list[str]
    layer_sizes: list[int]
    radius: float | list[float]
    at: str | None
    dtype: torch.dtype
    upper: Tensor | None = None
    histogram: Tensor | None = None
    jacobian_norm: Tensor | None = None
    dim: int = 0
    n_directions: int = 0
    uncounted: Sequence[str] = ()
    route: str = ""

    @property
    def total(self) -> Tensor:
        """``(N,)``: switching units of all layers, ``counts.sum(-1)``; NaN where a pre-activation was not finite."""
        total, broken = self.counts.sum(-1), (self.counts < 0).any(-1)
        return total.double().masked_fill(broken, math.nan) if broken.any() else total

    @property
    def mean(self) -> Any:
        """Mean of ``total`` over the points: float, with several radii a float64 tensor ``(R,)``."""
        return self._per_radius(self.total.double().mean(-1))

    @property
    def sem(self) -> Any:
        """Standard error of ``mean`` over the points, NaN for a single point."""
        total = self.total.double()
        n = total.shape[-1]
        return self._per_radius(total.std(-1) / n**0.5 if n > 1 else torch.full(total.shape[:-1], math.nan))

    @property
    def ci99(self) -> Any:
        """Half the width of the 99 % interval of ``mean`` over the points (normal approximation)."""
        sem = self.sem
        return sem * Z99

    @property
    def layer_means(self) -> list[Any]:
        """Mean of ``counts`` over the points, for each layer; with several radii a list ``(R,)`` of such lists."""
        counts = self.counts.double().masked_fill(self.counts < 0, math.nan)
        return counts.mean(-2).tolist()

    def critical_radius(self, share: float) -> float:
        """The radius at which this share of the units, over points and layers, has switched, within 1.6 %.

        NaN if a pre-activation was not finite.

        Raises:
            ValueError: without ``method="linear"``, or if ``share`` is not above 0 and at most 1.
        """
        if self.histogram is None:
            raise ValueError("critical radii need `method='linear'`.")
        if (self.counts < 0).any():
            return math.nan
        if not 0 < share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1, but got {share!r}.")
        return radius_at_rank(self.histogram, share * float(self.histogram.sum()))

    @property
    def density(self) -> float:
        """Switching units of a point per unit of radius, as the radius goes to 0.

        This is one divided by the radius within which one unit switches at a point in the mean, but at most a tenth of
        all units: the slope of local complexity on its first bit, for which no radius has to be chosen. Within 1.6 %.
        NaN if a pre-activation was not finite; infinite if so many units are exactly on their kink, as those are which
        see nothing but zeros.

        Raises:
            ValueError: without ``method="linear"``.
        """
        units = sum(self.layer_sizes)
        each = min(1.0, units / 10)
        radius = self.critical_radius(each / units)
        return each / radius if radius else math.inf

    @property
    def boundary_density(self) -> float | None:
        r"""Area of the boundaries where units switch, per unit of volume around a point.

        By the coarea formula this is :math:`\mathbb{E}_x \sum_i \|\nabla z_i(x)\| \, p_i(0 | x)` with :math:`p_i` the
        density of :math:`z_i` near the points: the local complexity of Patel and Montúfar (*On the Local Complexity of
        Linear Regions in Deep ReLU Networks*, ICML 2025) without the noise on the biases by which they smooth it, in
        the limit of no noise. It is :attr:`density` over :math:`2 c(D, P)`: a unit of gradient :math:`g` moves along
        the steepest of ``P`` random orthonormal directions by :math:`c(D, P) \|g\|` in the mean. Unlike
        :attr:`density` it does not depend on ``P``. ``None`` if the directions were given.

        Raises:
            ValueError: without ``method="linear"``.
        """
        density = self.density
        return density / (2 * steepest_share(self.dim, self.n_directions)) if self.n_directions else None

    @property
    def total_variation(self) -> float | None:
        r"""Mean Frobenius norm of the Jacobian of the model's output at the first points: a quarter of all, at most 64.

        The norm is that of the derivatives along the ``P`` directions of the frame, times :math:`\sqrt{D/P}`: its
        square is unbiased over frames; the norm itself is low by a share of at most :math:`1/(4P)` in the mean, and
        exact for ``P = D``. ``None`` where the output was not followed: it is none, or no tensor; the directions were
        given; it reads the inputs again, where points enter behind the first layers; an operation behind the last
        counted layer has no derivative rule, where the others have; or the output is larger than all that leads to the
        counted layers.
        """
        return None if self.jacobian_norm is None else float(self.jacobian_norm.mean())

    def __repr__(self) -> str:
        several = isinstance(self.radius, list)
        means, halves = (self.mean.tolist(), self.ci99.tolist()) if several else ([self.mean], [self.ci99])
        mean = ", ".join(f"{mean:.4g} ± {half:.2g}" for mean, half in zip(means, halves, strict=True))
        radius = (
            f"[{', '.join(f'{r:g}' for r in self.radius)}]" if isinstance(self.radius, list) else f"{self.radius:g}"
        )
        return (
            f"LocalComplexity(mean={f'[{mean}]' if several else mean} (99 %), radius={radius}, "
            f"{self.counts.shape[-2]} points, {sum(self.layer_sizes)} units in {len(self.layer_sizes)} layers)"
        )

    def _per_radius(self, value: Tensor) -> Any:
        return value if isinstance(self.radius, list) else float(value)


def local_complexity(
    model: nn.Module,
    inputs: Any,
    *,
    radius: float | Sequence[float] = 0.005,
    n_directions: int | None = None,
    directions: Tensor | None = None,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    at: str | None = None,
    method: str = "vertices",
    max_pool: bool = False,
    bracket: bool = False,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocalComplexity:
    r"""Count the units that switch inside a cross-polytope around each point.

    For a point :math:`x`, orthonormal directions :math:`v_1 \dots v_P` and a radius :math:`r`, the frame is the
    :math:`2P` vertices :math:`x \pm r v_p`. With :math:`z_i(u)` the pre-activation of unit :math:`i` at vertex
    :math:`u`,

    .. math::
        LC(x) = \sum_\text{layers} \sum_i 1[\, z_i(u) > 0 \text{ for some vertices and} \le 0 \text{ for others}\,]

    (*Deep Networks Always Grok and Here is Why*, ICML 2024, section 2 and equation 6; the sum over layers as in the
    authors' code). Each unit counts at most once; every channel and position of a feature map is a unit.

    The model is measured in eval mode, in float32 or better, without autocast, and left exactly as it was: modes,
    buffers, gradients and random states. Half-precision parameters are measured as float32 copies. Where
    :math:`r/\sqrt{D}` is within a few units in the last place of the inputs all moves to float64, with a warning.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords). The
            floating-point ones are perturbed (several as one product space); integer and boolean ones are held.
        radius: ``r`` > 0 in input units, or several radii.
        n_directions: ``P``, from 1 to the dimension of the perturbed space; ``None`` is 25, or all there are if fewer.
        directions: ``(P, *shape)`` or ``(P, D)``, used as given instead of a random frame.
        seed: seed of the frame, see :func:`cross_polytope_frame`.
        layers: ``None`` counts the pre-activation of every non-linearity that is executed, module or function, in
            execution order. A list of module names, ``fnmatch`` patterns, class names or types counts the *outputs* of
            these modules instead: ``[nn.Linear]`` is what the authors' code counts for an MLP, logits included.
        at: name of the module whose output (batch first) is perturbed instead of the input, at its first call. If no
            input is floating-point, this is the first ``nn.Embedding`` that is executed.
        method: ``"vertices"``, or ``"linear"``: at each point the network is replaced by its own affine piece. A unit
            has the *critical radius* :math:`\rho_i = |z_i(x)| / \max_p |dz_i(x)[v_p]|` and counts where this is at most
            ``r``, so all radii come from one pass of :math:`P + 1` samples, and ``critical_radius`` and ``density`` are
            known. Derivatives are exact where all operations are affine, have kinks or pool; with others (a LayerNorm,
            a softmax, a GELU) they are taken from steps of about a thousandth of the largest coordinate of a typical
            point. A model that jumps before its last layer (``torch.sign``, ``round``, ``hardshrink``, a cast to
            integers, ``>``, ...), or is flat right at a kink (``hardtanh(hardtanh(x))``), is counted by vertices
            instead, with a warning.
        max_pool: also count the winners that change: of each output of max-pooling, ``amax``, ``max(dim)`` and others,
            each candidate of ``topk``, and each cut between neighbours in the order of ``sort``.
        bracket: also bound the units that switch anywhere in the convex hull of the frame: ``counts`` are not more than
            these, for a unit that differs between vertices switches between them, and ``upper`` not fewer, for it is
            what bounds on all values in the hull do not exclude (to rounding; Singh et al., *Fast and Effective
            Robustness Certification*, NeurIPS 2018). In float64, for continuous piecewise affine networks, at a cost
            for each point of as many samples as the frame has directions and units that may switch.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: vertices in one forward pass; by default as many as fit a memory budget. Halved when out of memory.
        progress: called as ``progress(done, total)`` with numbers of points after each chunk.

    Returns:
        :class:`LocalComplexity` with ``counts (N, L)``, or ``(R, N, L)`` for several radii.

    Raises:
        ValueError: for an argument out of range, if no non-linearity was seen, or if a pre-activation cannot be
            assigned to the samples. The message says what to pass instead.

    Example::

        >>> import torch
        >>> from lc_callback.functional import local_complexity
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> with torch.no_grad():  # lines x = 0, y = 0 and x + y = 1
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        ...     _ = net[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        >>> lc = local_complexity(net, torch.tensor([[0.0, 0.0], [5.0, 5.0]]), radius=0.1, n_directions=2)
        >>> lc.total
        tensor([2, 0])
        >>> lc.mean, lc.layer_names, lc.layer_sizes
        (1.0, ['1'], [3])

        >>> lc = local_complexity(net, torch.tensor([[0.4, 0.4]]), radius=0.35, n_directions=2, bracket=True)
        >>> lc.total, lc.upper.sum(-1)  # no other unit switches between the vertices
        (tensor([1]), tensor([1]))
    """
    radii = check_arguments(radius, n_directions, layers, at, chunk_size)
    check_method(method, ("vertices", "linear"), layers, max_pool, bracket)
    if bracket and layers is not None:
        raise ValueError("`bracket=True` bounds the pre-activations of non-linearities: leave `layers` out.")
    task = counting_task(method, model, inputs, layers=layers, max_pool=max_pool, at=at, forward_fn=forward_fn)
    if not bracket:
        found = wrapped(task.measure(radius, n_directions, directions, seed, chunk_size, progress))
        return found if directions is None else replace(found, jacobian_norm=None, n_directions=0)
    with task.ready(min(radii), n_directions, directions, seed, chunk_size, torch.float64) as counter:
        found = wrapped(counter.count_set(0, radius, progress))
    space = Space(model, inputs, at=at, forward_fn=forward_fn)
    with untouched(model, forward_fn, dtype=torch.float64):
        space.locate(torch.float64)
        bound = UpperBound(space)
        upper = bound.count(radii, counter.route.frame)
    upper = upper[..., [max_pool or not pool for pool in bound.pools]]
    if upper.shape[-1] != len(found.layer_names):
        raise ValueError(
            "`bracket=True` has no bound for the winners of `topk`, `sort` and others: leave `max_pool` out."
        )
    return replace(found, upper=upper if isinstance(radius, Sequence) else upper[0])


def joined(parts: Sequence[LocalComplexity]) -> LocalComplexity:
    """Local complexity at all points, from that at each :func:`share_of` them, in the order of these."""
    n = sum(part.counts.shape[-2] for part in parts)
    counts = parts[0].counts.new_empty(*parts[0].counts.shape[:-2], n, len(parts[0].layer_names))
    for index, part in enumerate(parts):
        counts[..., share_of(n, index, len(parts)), :] = part.counts
    histograms = [part.histogram for part in parts if part.histogram is not None]
    histogram = sum(histograms[1:], histograms[0]) if histograms else None
    found = [part.jacobian_norm for part in parts if part.jacobian_norm is not None]
    norms = torch.cat(found) if len(found) == len(parts) else None
    if norms is not None:
        order = torch.cat([share_of(len(norms), index, len(parts)) for index in range(len(parts))])
        norms = norms[order.argsort()]
    return replace(parts[0], counts=counts, histogram=histogram, jacobian_norm=norms)


def wrapped(found: SwitchCounts) -> LocalComplexity:
    """What a counter found, as local complexity."""
    return LocalComplexity(**vars(found))


def counting_task(
    method: str,
    model: nn.Module,
    inputs: Any,
    *,
    layers: Sequence[str | type] | None,
    max_pool: bool,
    at: str | None,
    forward_fn: Callable[..., Any] | None,
    others: Sequence[Any] = (),
) -> CountingTask:
    """What is to be counted. Arguments as of :func:`local_complexity` and :class:`CountingTask`, and checked."""
    counted: dict[str, Any] = {} if method == "linear" else {"layers": layers, "max_pool": max_pool}
    return CountingTask.by(method, model, inputs, others=others, at=at, forward_fn=forward_fn, **counted)


def check_method(method: Any, possible: Sequence[str], layers: Any, max_pool: bool, bracket: bool = False) -> None:
    """Check that a method is one of those possible, and goes with what is counted.

    Raises:
        ValueError: naming the argument, the value and what is possible.
    """
    if method not in possible:
        raise ValueError(
            f"`method` must be {' or '.join(map(repr, possible))}, but got {method!r}{did_you_mean(method, possible)}"
        )
    if method == "linear" and (layers is not None or max_pool or bracket):
        raise ValueError("`method='linear'` follows all non-linearities: leave `layers`, `max_pool` and `bracket` out.")


def check_arguments(radius: Any, n_directions: Any, layers: Any, at: Any, chunk_size: Any) -> list[float]:
    """Check what can be checked without model and points. Returns the list of radii.

    Raises:
        ValueError: naming the argument, the value and what is possible.
    """
    several = isinstance(radius, Sequence) and not isinstance(radius, str)
    radii = list(radius) if several else [radius]
    numbers = all(isinstance(r, Real) and not isinstance(r, bool) for r in radii)
    if not radii or not numbers or not all(0 < r < math.inf for r in radii) or len(set(radii)) < len(radii):
        raise ValueError(f"`radius` must be a positive number or a non-empty list of different ones, not {radius!r}.")
    if n_directions is not None:
        positive_integer("n_directions", n_directions)
    if chunk_size is not None:
        positive_integer("chunk_size", chunk_size)
    if layers is not None:
        check_layers(layers)
    if at is not None and not isinstance(at, str):
        raise ValueError(f"`at` must be the name of a module, but got {at!r}.")
    return [float(r) for r in radii]
