"""Directional derivatives of a network, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.batch_axis import BatchAxis
from lc_callback.engine.network.layers import OUTPUT_PLACE
from lc_callback.engine.network.max_pools import MAX_POOLS
from lc_callback.engine.network.operations import Kink, is_zero_below, kinks_of, relative
from lc_callback.engine.replay.affine_piece import is_hidden
from lc_callback.engine.replay.derivative_rules import rule_of
from lc_callback.engine.replay.dual import Dual, DualValues, NoRule, Room, at_point, moves
from lc_callback.engine.replay.program import ReplayProgram
from lc_callback.engine.replay.recording import EMIT, MOVE, OUTPUT, Step, in_words

__all__ = ["OutputNotFollowed", "differentiate"]

Receive = Callable[[int, list[Kink], Dual], None]

_ROWS = BatchAxis(0)  # each sample is one row of the first axis, not several


class OutputNotFollowed(Exception):  # noqa: N818 (no error: the units can be followed without the output)
    """An operation behind the last pre-activation has no known derivative."""


def differentiate(
    program: ReplayProgram,
    inputs: Any,
    samples: int,
    move: Callable[[Any], Dual],
    receive: Receive,
    axis_of: Callable[[int], BatchAxis | None],
    room: Room,
    *,
    with_output: bool = False,
) -> None:
    """Execute the steps to pre-activations and output at ``n`` points, with derivatives along ``k`` directions.

    Args:
        program: what is executed.
        inputs: the inputs of the model; those that move are a :class:`Dual`.
        samples: ``n``.
        move: called with the output of the module at which the samples are moved.
        receive: called for each pre-activation with its number, its kinks at the points, and its :class:`Dual`; and for
            the output. It has to copy what it keeps, because the tensors may be overwritten.
        axis_of: called with the number of a pre-activation: where its points are.
        room: memory for what is needed only for a short time.
        with_output: whether the output is needed too.

    Raises:
        NoRule: if the derivative of an operation is not known.
        OutputNotFollowed: likewise, if that operation only leads to the output.
    """
    values = program.start([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, (Tensor, Dual))])
    known = DualValues(values, room)
    for step in program.steps_to(with_output):
        args, kwargs = program.arguments(step, values, samples)
        for number in step.dead_after:  # now, so that the rules see what nothing else needs
            values[number] = None
        if step.op == MOVE:
            values[step.outputs[0]] = move(*args)
            continue
        duals = [place for place, argument in enumerate(args) if moves(argument)]
        at_points = args.copy()
        for place in duals:
            at_points[place] = at_point(args[place])
        if step.op == OUTPUT and duals:
            receive(OUTPUT_PLACE, [(at_points[0], 0.0)], args[0])
            continue
        if step.op == EMIT or (step.position >= 0 and duals != [0]):
            raise _several_move(step)
        if step.position >= 0 and step.op not in MAX_POOLS:
            kinks, axis = kinks_of(step.op, at_points, kwargs), axis_of(step.position)
            if axis not in (None, _ROWS) and step.op != "relu" and is_zero_below(step.op):
                # The rule compares what is in one row, as if it were all of one point.
                raise NoRule(f"{in_words(step)} has no derivative rule where samples are not rows of the first axis")
            if step.position > 0:  # before the first there are no inactive units
                args[0].hidden = _hidden(relative(*kinks[0]), args[0].steepest(), samples, axis)
            receive(step.position, kinks, args[0])
        if step.unused:
            continue
        try:
            result = _result(step, args, at_points, kwargs, known)
        except NoRule as reason:
            if step.for_output:
                raise OutputNotFollowed(str(reason)) from None
            raise
        results = result if isinstance(result, (tuple, list)) else (result,)
        for number, tensor in zip(step.outputs, results, strict=False):
            if number >= 0:
                values[number] = tensor
        del args, at_points, result, results  # so that dead tensors are freed here


def _hidden(z: Tensor, reach: Tensor, samples: int, axis: BatchAxis | None) -> Tensor | None:
    """Which units are 0 because of others, as :func:`is_hidden`, wherever the points are."""
    if axis is None or axis == _ROWS:
        return is_hidden(z, reach)
    found = is_hidden(axis.to_front(z, samples), axis.to_front(reach, samples))
    if found is None:
        return None
    hidden = torch.empty_like(z, dtype=torch.bool)
    axis.to_front(hidden, samples).copy_(found)
    return hidden


def _result(step: Step, args: list[Any], at_points: list[Any], kwargs: Any, known: DualValues) -> Any:
    """The result of a step."""
    if any(map(moves, kwargs.values())):
        raise _several_move(step)
    if not any(map(moves, args)):
        return step.func(*args, **kwargs)
    rule = rule_of(step.op)
    if rule is None:
        raise NoRule(f"{in_words(step)} has no derivative rule")
    return rule(step, args, at_points, kwargs, known)


def _several_move(step: Step) -> NoRule:
    return NoRule(f"{in_words(step)} has several operands that move")
