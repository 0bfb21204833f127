"""Adversarial attacks on any model in any domain: by torchattacks, or without it by those that are built in."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lc_callback.engine.adversarial.built_in import ARGUMENTS, attack_built_in
from lc_callback.engine.adversarial.labels import Labels
from lc_callback.isolation import fixed_rng
from lc_callback.suggestions import did_you_mean

__all__ = ["Attack", "Box", "Victim", "check_attack", "lowered_confidence"]

# Norm of the budget, where it is not the maximum norm. Some of these take `eps`, others look for the smallest step.
_NORMS = {"PGDL2": 2.0, "PGDRSL2": 2.0, "CW": 2.0, "DeepFool": 2.0, "SparseFool": 1.0, "EADL1": 1.0, "EADEN": 1.0}
_NORMS |= dict.fromkeys(("JSMA", "OnePixel", "Pixle"), 0.0)
_NORM_NAMES = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0}
# These are no attacks by themselves (VANILA, GN), or they need more than a model.
_NOT_ATTACKS = ("VANILA", "GN", "LGV", "MultiAttack")
_FLOAT32_ONLY = ("AutoAttack", "FAB", "TIFGSM", "PIFGSM", "PIFGSMPP", "EADL1", "EADEN", "Jitter")
# Attacks with filters of three channels.
_OF_COLOUR = ("TIFGSM", "PIFGSM", "PIFGSMPP")
# They find directions from ratios of logit differences to their gradients. The logit scale does not matter to them, and
# a margin that is made shorter misleads them.
_SCALE_FREE = ("FAB", "SparseFool", "JSMA", "EADL1", "EADEN")
# Attacks whose loss is a mean over the decisions of a point, if it has several.
_OF_SEVERAL = {"BIM", "DIFGSM", "EOTPGD", "FFGSM", "FGSM", "MIFGSM", "NIFGSM", "PGD", "PGDL2", "PIFGSM", "PIFGSMPP"}
_OF_SEVERAL |= {"RFGSM", "SINIFGSM", "TIFGSM", "TPGD", "UPGD", "VMIFGSM", "VNIFGSM"}
_NO_CLASS = -100  # the class that the cross entropy of torch ignores
_FEWEST_CLASSES = {"APGD": 3, "APGDT": 4, "AutoAttack": 4}  # that their losses index
# Sharpness of the softmax over the wrong classes, in units of the typical margin.
_SHARPNESS = 10.0


def check_attack(attack: Any, arguments: Mapping[str, Any]) -> None:
    """Check the name of an attack, and that what it needs is installed.

    Raises:
        ValueError: naming the argument and what is possible.
    """
    if callable(attack):
        return
    if not isinstance(attack, str):
        raise ValueError(f"`attack` must be the name of an attack or a function (model, x, y), but got {attack!r}.")
    if _is_built_in(attack):
        unknown = sorted({*arguments} - {*ARGUMENTS[attack]})
        if unknown:
            takes = f"takes {ARGUMENTS[attack][0]!r} only" if ARGUMENTS[attack] else "takes nothing"
            near = did_you_mean(unknown[0], ARGUMENTS[attack])
            raise ValueError(f"`attack_args` of {attack!r} {takes}, but got {unknown}{near}")
        return
    module = _torchattacks(attack)
    names = [name for name in module.__all__ if name not in _NOT_ATTACKS]
    if attack not in names:
        raise ValueError(f"`attack={attack!r}` is not one of {', '.join(sorted(names))}{did_you_mean(attack, names)}")
    unknown = sorted({*arguments} - {*_parameters(getattr(module, attack))})
    if unknown:
        possible = list(_parameters(getattr(module, attack)))
        near = did_you_mean(unknown[0], possible)
        raise ValueError(f"`attack_args` of {attack!r} holds {unknown}; possible are {possible}{near}")


class Box:
    """The domain ``low <= x <= high`` as a part of the unit box, with one scale for all directions.

    ``u = (x - low) / scale`` with ``scale = max(high - low)``: in every norm a ball of radius eps becomes a ball of
    radius eps / scale. A feature with a smaller range ends at ``top`` < 1. If the domain is the unit box, points stay
    as they are, bit for bit.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        self.scale = float((high - low).max()) or 1.0
        self.is_unit = bool((low == 0).all() and (high == 1).all())
        top = (high - low) / self.scale
        self._top = None if bool((top == 1).all()) else top

    def enter(self, x: Tensor) -> Tensor:
        """``x`` in unit-box coordinates."""
        if self.is_unit:
            return x
        u = ((x - self.low) / self.scale).clamp(0, 1)
        return u if self._top is None else torch.minimum(u, self._top)

    def leave(self, u: Tensor) -> Tensor:
        """Back from the unit box. Beyond ``top`` the value is that at ``top``, but gradients still flow."""
        if self.is_unit:
            return u
        if self._top is not None:
            u = u + (torch.minimum(u, self._top) - u).detach()
        return self.low + self.scale * u

    def inside(self, u: Tensor) -> Tensor:
        """As :meth:`leave`, but rounding never leads out of the domain. It has no gradient."""
        return u if self.is_unit else torch.clamp(self.leave(u), self.low, self.high)


class Victim(nn.Module):
    """A model as an attack needs it: from points to logits, always in eval mode.

    It owns no parameter of the model, so an attack can change nothing of the model and gives it no gradient.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self._logits = logits
        self.training = False
        self._device = nn.Parameter(torch.empty(0, device=device), requires_grad=False)  # attacks look for a device

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        return self._logits(x)

    def train(self, mode: bool = True) -> Victim:
        """Does nothing: there is no mode to change."""
        return self


class Attack:
    """One attack with one budget.

    Args:
        attack: name or function.
        eps: the budget, in units of the points.
        alpha: step size in these units; ``None`` is ``2.5 eps / steps``.
        steps: iterations.
        arguments: further arguments of the attack of torchattacks.
        seed: seed of all random numbers of the attack.
    """

    def __init__(
        self, attack: Any, eps: float, alpha: float | None, steps: int, arguments: Mapping[str, Any], seed: int
    ) -> None:
        self.attack, self.eps, self.steps, self.seed = attack, eps, steps, seed
        self.alpha = 2.5 * eps / steps if alpha is None else alpha
        self.arguments = dict(arguments)
        norm = self.arguments.get("norm", "Linf")
        self.norm = _NORMS.get(attack, _NORM_NAMES.get(norm, float("inf"))) if isinstance(attack, str) else float("inf")

    @property
    def has_budget(self) -> bool:
        """Whether it takes ``eps``. If not, it looks for the smallest change."""
        if not isinstance(self.attack, str) or _is_built_in(self.attack):
            return True
        return bool({"eps", "max_epsilon"} & {*_parameters(getattr(_torchattacks(self.attack), self.attack))})

    @property
    def is_scale_free(self) -> bool:
        """Whether the logit scale does not matter to it."""
        return self.attack in _SCALE_FREE

    @property
    def is_by_point(self) -> bool:
        """Whether it does the same to a part of the points as to all, but for rounding.

        Its random numbers then have to go on from one part to the next. Uniform numbers come one by one, so it does not
        matter how many are drawn at once.
        """
        return self.attack == "PGD"

    @property
    def stops(self) -> bool:
        """Whether the attack on a point can stop at the step at which its decision falls: our own PGD."""
        return self.attack == "PGD" and not {*self.arguments} - {"random_start"}

    def noise(self, x: Tensor, box: Box) -> Tensor | None:
        """What PGD adds to the points ``x (N, ...)`` at its start, in the unit box; each point has its own."""
        if not self.arguments.get("random_start", True):
            return None
        eps, _ = self.in_unit_box(box)
        return torch.empty_like(box.enter(x)).uniform_(-eps, eps)

    @contextmanager
    def seeded(self, device: torch.device) -> Iterator[None]:
        """Inside, random numbers begin at the seed and are the same on each device."""
        with fixed_rng(self.seed), nullcontext() if device.type == "cpu" else _NoiseOfTheCPU():
            yield

    def noise_of(self, rows: Tensor) -> AbstractContextManager[object]:
        """Inside, these rows get the noise that they would get if all points up to the last of them drew together."""
        return nullcontext() if len(rows) == int(rows[-1]) + 1 else _NoiseOfSome(rows)

    def check_decisions(self, is_single: bool) -> None:
        """Refuse an attack whose loss takes one decision for each point, if there are several."""
        if not is_single and isinstance(self.attack, str) and self.attack not in _OF_SEVERAL:
            raise ValueError(
                f"`attack={self.attack!r}` is for one decision at each point, but there are several (pixels or "
                f"labels): use one of {', '.join(sorted(_OF_SEVERAL))}, or a function."
            )

    def run(self, logits: Callable[[Tensor], Tensor], x: Tensor, labels: Labels, box: Box, n_classes: int) -> Tensor:
        """Adversarial points ``(N, ...)`` for the points ``x (N, ...)`` and their labels.

        ``logits`` maps points to ``(N, C, *E)`` and is differentiable. Nothing is checked yet.
        """
        if not isinstance(self.attack, str):
            return self._own(lambda u: labels.outputs(logits(u)), x, labels)
        y = labels.classes if labels.counted is None else labels.classes.where(labels.counted, _NO_CLASS)
        if _is_built_in(self.attack):
            eps, alpha = self.in_unit_box(box)
            settings = {"eps": eps, "alpha": alpha, "steps": self.steps, **self.arguments}
            found = attack_built_in(self.attack, lambda u: logits(box.leave(u)), box.enter(x), y, **settings)
            return box.leave(found)
        return self._torchattacks(logits, x, y, box, n_classes)

    def in_unit_box(self, box: Box) -> tuple[float, float]:
        """Budget and step size."""
        return (self.eps, self.alpha) if box.is_unit else (self.eps / box.scale, self.alpha / box.scale)

    def _own(self, outputs: Callable[[Tensor], Tensor], x: Tensor, labels: Labels) -> Tensor:
        y = labels.targets().clone()
        y = y if labels.task == "multiclass" else y.to(x.dtype)  # as the binary cross entropy takes them
        takes_eps = "eps" in _parameters(self.attack)
        result = self.attack(Victim(outputs, x.device), x.clone(), y, **({"eps": self.eps} if takes_eps else {}))
        if not isinstance(result, Tensor) or result.shape != x.shape:
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"`attack` must return a tensor {tuple(x.shape)}, the attacked points, but gave {got}.")
        return result.detach().to(x)

    def _torchattacks(
        self, logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, box: Box, n_classes: int
    ) -> Tensor:
        kind = getattr(_torchattacks(self.attack), self.attack)
        eps, alpha = self.in_unit_box(box)
        settings = {"eps": eps, "max_epsilon": eps, "alpha": alpha, "steps": self.steps, "seed": self.seed}
        fewest = _FEWEST_CLASSES.get(self.attack, 0)
        settings |= {"n_classes": max(n_classes, fewest)}
        known = _parameters(kind)
        settings = {name: value for name, value in settings.items() if name in known}
        if not {"eps", "max_epsilon"} & {*known}:  # it looks for the smallest step, with its own number of steps
            settings = {name: value for name, value in settings.items() if name not in ("alpha", "steps")}
        if "alpha" in known and "steps" not in known:  # FFGSM, one step: the factor its authors recommend
            settings["alpha"] = 1.25 * eps
        self._check_shape(x.shape)
        shape = x.shape if x.ndim == 4 else (len(x), x[0].numel(), 1, 1)
        dtype = torch.float32 if self.attack in _FLOAT32_ONLY else x.dtype

        def of_images(u: Tensor) -> Tensor:
            return _padded(logits(box.leave(u.to(x.dtype).reshape(len(u), *x.shape[1:]))), fewest).to(dtype)

        victim = Victim(of_images, x.device)
        u = box.enter(x).to(dtype).reshape(shape)
        attack = kind(victim, **{**settings, **self.arguments})
        if self.attack == "JSMA":  # its target is (y + 1) % 10
            attack.set_mode_targeted_by_function(lambda _, y: (y + 1) % n_classes, quiet=True)
        found = attack(u, y)
        return box.leave(found.detach().to(x.dtype).reshape(x.shape))

    def _check_shape(self, shape: torch.Size) -> None:
        """Refuse points that are no images, for attacks that filter or tile images."""
        tiles = self.attack == "Square" or (self.attack == "AutoAttack" and self.arguments.get("version") != "rand")
        if tiles and self.norm == 2:
            fits, images = len(shape) == 4 and min(shape[2:]) >= 5, "in L2 is for images (N, C, H, W) from 5 x 5"
        elif self.attack in _OF_COLOUR:
            fits, images = len(shape) == 4 and shape[1] == 3, "is for images (N, 3, H, W)"
        else:
            fits, images = len(shape) == 4 or self.attack != "DIFGSM", "is for images (N, C, H, W)"
        if not fits:
            raise ValueError(f"`attack={self.attack!r}` {images}, but the points have shape {tuple(shape)}.")


def lowered_confidence(logits: Tensor, margin: float) -> Tensor:
    """Logits with the same decisions, whose gradient does not vanish, whatever their scale.

    Let ``z`` be the logits in units of the typical margin, times the sharpness. Let ``m`` be the lead of the top logit
    over the logarithm of the summed exponentials of the others. A positive lead becomes ``log(1 + m)``. The gradient of
    the cross-entropy keeps its direction, that of the lead. Its length falls as ``1 / m`` instead of ``exp(-m)``.

    Args:
        logits: ``(N, C)`` with ``C >= 2``.
        margin: typical lead of the top logit over the second, of the network.
    """
    return _Lowered.apply(logits, _SHARPNESS / margin)


class _Lowered(torch.autograd.Function):
    """``lowered_confidence`` with its derivative written out, because every step of an attack calls it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, factor: float) -> Tensor:
        z = logits * factor
        top = z.argmax(1, keepdim=True)
        others = z.scatter(1, top, -torch.inf)
        most = others.amax(1, keepdim=True)
        weights = (others - most).exp_()
        total = weights.sum(1, keepdim=True)
        lead = (z.gather(1, top) - most - total.log()).clamp_(min=0)
        # By z, the lead has the derivative 1 at the top and minus the softmax elsewhere.
        slope = weights.div_(-total).scatter_(1, top, 1.0)
        ctx.save_for_backward(top, lead, slope)
        ctx.factor = factor
        return z.scatter_add_(1, top, torch.log1p(lead) - lead)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        top, lead, slope = ctx.saved_tensors
        by_lead = grads[0].gather(1, top) * (-lead / (1 + lead))  # the derivative of log(1 + lead) - lead
        return torch.addcmul(grads[0], by_lead, slope) * ctx.factor, None


def _padded(logits: Tensor, fewest: int) -> Tensor:
    """Adds classes if there are fewer than the attack indexes, so unlikely that they change no loss."""
    missing = fewest - logits.shape[1]
    if missing <= 0:
        return logits
    low, high = logits.detach().amin(1, keepdim=True), logits.detach().amax(1, keepdim=True)
    return torch.cat([logits, (low - 1000 * (high - low) - 100).expand(-1, missing)], dim=1)


class _NoiseOfTheCPU(TorchFunctionMode):
    """Draws random numbers for other devices on the CPU, so that a seed gives the same noise everywhere."""

    _IN_PLACE = (Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_)
    _NEW = (torch.rand, torch.randn, torch.randint, torch.rand_like, torch.randn_like, torch.randperm)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._IN_PLACE:
            return args[0].copy_(func(torch.empty_like(args[0], device="cpu"), *args[1:], **kwargs))
        if func in self._NEW:
            like = args[0] if args and isinstance(args[0], Tensor) else None
            device = kwargs.get("device") or (like.device if like is not None else None)
            source = args if like is None else (torch.empty_like(like, device="cpu"), *args[1:])
            result = func(*source, **{**kwargs, "device": "cpu"})
            return result if device is None else result.to(device)
        return func(*args, **kwargs)


class _NoiseOfSome(TorchFunctionMode):
    """Gives ``n`` points the rows of uniform random numbers that they have when more points draw."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self._rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.uniform_:
            return func(*args, **kwargs or {})
        some, *rest = args
        shape = int(self._rows[-1]) + 1, *some.shape[1:]
        # Numbers are drawn in the order of the memory, which has to be that of all points.
        all_of_them = some.new_empty_strided(shape, (some[0].numel(), *some.stride()[1:]))
        return some.copy_(func(all_of_them, *rest, **kwargs or {})[self._rows])


def _parameters(function: Any) -> dict[str, Any]:
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin or an extension
        return {}
    parameters.pop("model", None)
    return parameters


def _is_built_in(attack: str) -> bool:
    """Whether the attack is our own, because torchattacks is not installed."""
    if attack not in ARGUMENTS:
        return False
    try:
        importlib.import_module("torchattacks")
    except ImportError:
        return True
    return False


def _torchattacks(attack: str) -> Any:
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        raise ValueError(
            f"`attack={attack!r}` needs torchattacks ({error}): install the extra, `pip install lc_callback[attacks]`, "
            f"and then `pip install --no-deps torchattacks`; or use one of {', '.join(ARGUMENTS)}, which are built in"
            f"{did_you_mean(attack, ARGUMENTS)}"
        ) from error
