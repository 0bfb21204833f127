"""Which way points are followed: the fastest that gives the same as the model, and why no faster one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from lc_callback.engine.network.layers import Consumer, Execution, TracedLayers
from lc_callback.engine.network.modules import module_paths
from lc_callback.engine.network.space import Space
from lc_callback.engine.replay.dual import NoRule
from lc_callback.engine.replay.prefix import Prefix, modules_before_kinks, prefix_behind
from lc_callback.engine.replay.program import ReplayProgram
from lc_callback.engine.replay.recording import NotRepeatable, Recording
from lc_callback.engine.replay.way import Way, same, some_moves

__all__ = ["Observer", "Route", "has_images"]

_TRIED = 3  # modules
_OTHER_VALUES = "it gives other values than the model itself"
_NOT_AFFINE = "which is not affine in the inputs, or not all that the rest of the model reads"


class Observer(Protocol):
    """What has to be the same on every way.

    Attributes:
        execution: how operations are executed.
        has_rules: whether derivatives may come from a rule for each operation.
        follows_output: whether the output is followed too, if that makes no other way necessary.
    """

    execution: Execution
    has_rules: bool
    follows_output: bool

    def observe(self, way: Way, points: Tensor, moves: Tensor, most: int) -> tuple[list[Tensor], list[Tensor]]:
        """What is seen at these points, moved by ``moves (2, B)``, with at most ``most`` samples in a forward pass.

        Returns what has to be the same, and what is seen of the output, if it is followed.
        """
        ...


class Route:
    """The way by which points are followed along a frame, chosen when it is made.

    The model itself can always run. Three ways are faster, and each is taken if it gives the same at a few points: the
    recorded operations are replayed without the Python code of the model; points enter behind its first affine modules;
    derivatives come from a rule for each operation. The points enter at the inputs if integers or masks belong to them,
    if they are moved inside the model, or if the model reads their values or decides by them.

    Args:
        layers: the layers whose pre-activations are followed.
        frame: ``(B, D)`` directions.
        most: samples in one forward pass.
        observer: what is compared.
        verified: the points at which it is compared.
        recording: the operations of the model, or why they are not known.
    """

    def __init__(
        self,
        layers: TracedLayers,
        frame: Tensor,
        most: int,
        observer: Observer,
        verified: Tensor,
        recording: Recording | NotRepeatable,
    ) -> None:
        search = _Search(layers, frame, most, observer, verified, recording)
        self.way = replace(search.best(), with_output=search.with_output)
        self.way.layers.space.points.channels_last = self.way.channels_last
        self._explanation = _explained(self.way, observer.has_rules, search.reasons)

    @property
    def frame(self) -> Tensor:
        """``(B, D)`` directions."""
        return self.way.frame

    @property
    def program(self) -> ReplayProgram | None:
        """Recorded operations that run in place of the model; ``None`` if the model runs."""
        return self.way.program

    @property
    def prefix(self) -> Prefix | None:
        """The module behind which the points enter; ``None``: they enter at the inputs."""
        return self.way.prefix

    @property
    def uses_derivative_rules(self) -> bool:
        """Whether derivatives come from a rule for each operation."""
        return self.way.uses_derivative_rules

    @property
    def with_output(self) -> bool:
        """Whether the output is followed too."""
        return self.way.with_output

    def follow(self, points: Tensor, coefficients: Tensor, consumer: Consumer) -> object:
        """As :meth:`Way.follow`."""
        return self.way.follow(points, coefficients, consumer)

    def hold(self, points: Tensor, most: int) -> None:
        """Compute what enters for these points before parts of them are followed; at most ``most`` points at once."""
        if self.prefix is not None:
            self.prefix.hold(points, most)

    def explain(self) -> str:
        """Which way was taken, and why not a faster one."""
        return self._explanation


def _explained(way: Way, has_rules: bool, reasons: Mapping[str, str]) -> str:
    text = "replays the recorded operations" if way.program is not None else "runs the model for all samples"
    if way.prefix is not None:
        text += f" behind {_path(way.layers.space, way.prefix.module)}"
    if has_rules:
        text += ", derivatives by " + ("rules" if way.uses_derivative_rules else "small steps")
    why = []
    if way.program is None:
        why.append(f"no replay: {reasons.get('replay', 'not tried')}")
    if way.prefix is None:
        why.append(f"no later entry: {reasons.get('prefix', 'not tried')}")
    if has_rules and not way.uses_derivative_rules:
        why.append(f"no rules: {reasons.get('rules', 'not tried')}")
    return "; ".join([text, *why])


class _Search:
    """Tries ways, and notes why each of the others is not taken."""

    def __init__(
        self,
        layers: TracedLayers,
        frame: Tensor,
        most: int,
        observer: Observer,
        verified: Tensor,
        recording: Recording | NotRepeatable,
    ) -> None:
        #: Whether the output is followed on the way that was found last.
        self.with_output = observer.follows_output and layers.output_axis is not None
        self._plain = Way(layers, frame, observer.execution, with_output=self.with_output)
        self._space, self._most, self._observer, self._verified = layers.space, most, observer, verified
        self._recording = recording if isinstance(recording, Recording) else None
        self._moves = some_moves(layers, frame)
        self._expected: list[Tensor] = []
        self._output: list[Tensor] = []
        self.reasons: dict[str, str] = {}
        if self._recording is None:
            self.reasons = {"replay": str(recording), "rules": "no operations are replayed"}
        whole = _why_whole(layers)
        self._whole = bool(whole)
        if whole:
            self.reasons["prefix"] = whole

    def best(self) -> Way:
        """The fastest way that gives the same as the model."""
        self._space.points.channels_last = False
        if self._whole and self._recording is None:
            return self._plain
        self._expected, self._output = self._observe(self._plain)
        # First all that is likely, with one pass to confirm it. If that fails, one by one.
        return self._likely() or self._each()

    def _likely(self) -> Way | None:
        """All faster ways together, if they give the same."""
        if self._recording is None:
            return None
        way = replace(self._plain, uses_derivative_rules=self._observer.has_rules)
        if not self._whole:
            way = replace(way, channels_last=has_images(self._space))
            way = next(self._behind_modules(way, replays=True), way)
        if way.prefix is None:
            way = replace(way, program=self._program(None))
        return way if way.program is not None and not self._fault(way) else None

    def _each(self) -> Way:
        """One faster way after another, as far as each gives the same."""
        way = self._with("replay", replace(self._plain, program=self._program(None)), self._plain)
        if not self._whole:
            if has_images(self._space):
                way = self._with("layout", replace(way, channels_last=True), way)
            for shorter in self._behind_modules(way, replays=way.program is not None):
                fault = self._fault(shorter)
                if not fault:
                    way = shorter
                    break
                self._note_prefix(shorter.prefix, _NOT_AFFINE if fault == _OTHER_VALUES else fault)
        if self._observer.has_rules:
            way = self._with("rules", replace(way, uses_derivative_rules=True), way)
        return way

    def _with(self, name: str, faster: Way, way: Way) -> Way:
        """The faster way if it gives the same, else the other."""
        if name == "replay" and faster.program is None:
            return way
        fault = self._fault(faster)
        if fault:
            self.reasons[name] = fault
        return way if fault else faster

    def _behind_modules(self, way: Way, replays: bool) -> Iterator[Way]:
        """Ways that enter behind a module, the latest first.

        A model may use its input again later, or compute something else before its first non-linearity. So each way is
        tried.
        """
        self._space.points.channels_last = way.channels_last
        modules = self._returned() if replays else modules_before_kinks(self._space)
        if not modules:
            self.reasons.setdefault("prefix", "no module returns a tensor before the first non-linearity")
        for module in modules[:_TRIED]:
            program = self._program(module) if replays else None
            if replays and program is None:
                continue
            try:
                prefix = prefix_behind(module, self._space, way.frame, self._most)
            except Exception as error:  # more than one tensor, say
                self._note(module, _in_words(error))
                continue
            yield replace(way, program=program, prefix=prefix)

    def _returned(self) -> list[nn.Module]:
        """The modules that returned a tensor before the first non-linearity, the latest first."""
        return [] if self._recording is None else [*reversed(self._recording.returned)]

    def _program(self, module: nn.Module | None) -> ReplayProgram | None:
        """The recorded operations behind the output of ``module``; ``None`` if they cannot be replayed."""
        if self._recording is None:
            return None
        try:
            entry = None if module is None else self._recording.returned[module]
            return ReplayProgram(self._recording, entry, with_output=self._plain.with_output)
        except Exception as error:  # whatever it is, the model itself can run
            if module is None:
                self.reasons["replay"] = _in_words(error)
            else:
                self._note(module, _in_words(error))
            return None

    def _fault(self, way: Way) -> str:
        """Why a way cannot be taken; empty if it gives the same as the model."""
        try:
            found, output = self._observe(way)
        except Exception as error:  # then the way is not taken, and the reason is noted
            if way.with_output and not isinstance(error, NoRule):  # it may be the output alone that cannot be followed
                return self._fault(replace(way, with_output=False))
            return _in_words(error)
        if not same(self._expected, found):
            return _OTHER_VALUES
        self.with_output = way.with_output and same(self._output, output)
        return ""

    def _observe(self, way: Way) -> tuple[list[Tensor], list[Tensor]]:
        self._space.points.channels_last = way.channels_last
        return self._observer.observe(way, self._verified, self._moves, self._most)

    def _note_prefix(self, prefix: Prefix | None, reason: str) -> None:
        assert prefix is not None
        self._note(prefix.module, reason)

    def _note(self, module: nn.Module, reason: str) -> None:
        self.reasons.setdefault("prefix", f"behind {_path(self._space, module)}, {reason}")


def _why_whole(layers: TracedLayers) -> str:
    """Why points have to enter at the inputs; empty if they may enter later."""
    if layers.space.at_module is not None:
        return f"the output of {layers.space.at!r} is perturbed"
    if not layers.space.points.alone:
        return "more than the one tensor that moves belongs to the points"
    if layers.reads_values:
        return "it reads values in Python"
    return "it decides by values before its first non-linearity" if layers.decides else ""


def has_images(space: Space) -> bool:
    """Whether there may be images, whose convolutions are faster if the channels come last in memory."""
    cpu = space.device.type == "cpu" and space.dtype is torch.float32
    return cpu and any(isinstance(module, nn.Conv2d) for module in space.model.modules())


def _path(space: Space, module: nn.Module) -> str:
    return repr(module_paths(space.model).get(id(module)) or type(module).__name__)


def _in_words(error: Exception) -> str:
    if isinstance(error, (NoRule, NotRepeatable)):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
