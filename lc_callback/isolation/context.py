"""Measuring a model without leaving a trace on it: the one context manager :func:`untouched`."""

from __future__ import annotations

import functools
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lc_callback.isolation.inference_tensors import without_inference_tensors
from lc_callback.isolation.snapshot import copied, generator_state, restored

__all__ = ["fixed_rng", "untouched"]


@contextmanager
def untouched(
    model: nn.Module, *also: object, dtype: torch.dtype | None = None, seed: int | None = None, grad: bool = False
) -> Iterator[None]:
    """Put ``model`` into measuring conditions and give it back exactly as it was, also after an exception.

    Inside: every module is in eval mode, gradients, autocast, inference mode and reduced-precision float32 (TF32, bf16
    matmul) are off, compiled code runs eagerly, and the fused kernels of ``nn.TransformerEncoderLayer`` and of
    recurrent modules, which hide their non-linearities, are replaced by their plain forms. Afterwards all is what it
    was: the ``.training`` flag of every single module, the buffers (the model works on clones), parameters, ``.grad``,
    and the Python, NumPy, torch and CUDA random states. So are the attributes of the modules, and what these hold:
    :func:`lc_callback.isolation.snapshot.restored` says how far this goes.

    If each process has a part of the weights (``fully_shard``, ``parallelize_module``), whole weights take their place
    inside, and torch's hooks that put the parts together are left out. All processes have to enter then.

    Flags are set directly, not by ``model.eval()``: an overridden ``train()`` may merge or unmerge weights.

    Raises:
        ValueError: if a parameter is not initialised yet: a measurement would initialise it, with other numbers.

    Args:
        model: the module that is about to be measured.
        also: what else is called inside and may remember something, such as a ``forward_fn``.
        dtype: run with floating-point parameters and buffers in this dtype, if it differs from what they have.
        seed: seed for the random streams inside, so that a model that draws in eval mode gives the same row twice.
        grad: leave gradients on, for derivatives by the inputs. The parameters are detached stand-ins, so that even a
            ``backward()`` inside reaches no ``.grad``.

    Example::

        >>> import torch
        >>> from lc_callback.isolation import untouched
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
        >>> with untouched(net):
        ...     [m.training for m in net.modules()]
        [False, False, False]
        >>> [m.training for m in net.modules()]
        [True, True, True]
    """
    _keep_what_is_freed()
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("`model` has lazy parameters that are not initialised: run one batch through it first.")
    with ExitStack() as stack:
        stack.enter_context(fixed_rng(seed))
        stack.enter_context(torch.inference_mode(False))  # before the clones: a forward may write to these
        stack.enter_context(_eval_flags(model))
        stack.enter_context(_without_sharding(model))
        if stack.enter_context(restored(model, *also)):  # now that the weights are where they will stay
            stack.enter_context(without_inference_tensors(model))
        stack.enter_context(_stand_in_tensors(model, dtype, detached=grad))
        stack.enter_context(_plain_kernels(model))
        stack.enter_context(torch.set_grad_enabled(grad))
        for device_type in {"cpu", *(p.device.type for p in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@functools.cache
def _keep_what_is_freed() -> None:
    """Allocate and free 28 MB once, without writing to them.

    The C library of Linux returns freed memory to the system until a block of that size has been freed once. Until
    then every operation gets the memory of its result anew, page by page. A training with large tensors has freed
    such a block. After one with small tensors a measurement would take up to a quarter of its time for new pages
    (``benchmarks/freed_memory.py``).
    """
    torch.empty(28 * 2**20, dtype=torch.uint8, device="cpu")


@contextmanager
def fixed_rng(seed: int | None, *holders: object) -> Iterator[None]:
    """Restore all random streams on exit; inside, start them from ``seed`` (``None``: from where they are).

    The streams are Python's, NumPy's, torch's (CPU and CUDA, if in use), and every generator found in the attributes
    of ``holders``, nested datasets, lists of transforms and closures included.
    """
    generators = _generators(holders)
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
        if in_use:
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        for restore, state in generators:
            stack.callback(restore, state)
        if seed is not None:
            random.seed(seed)
            # `torch.manual_seed` would seed every other device as well, also one that is first used after this.
            torch.default_generator.manual_seed(seed)
            if in_use:
                torch.cuda.manual_seed_all(seed)
            if numpy is not None:
                numpy.random.seed(seed % 2**32)
        yield


def _generators(holders: tuple[object, ...], most: int = 10_000) -> list[tuple[Callable[[Any], Any], Any]]:
    """``(restore, state)`` of each random generator that ``holders`` keep, also in nested attributes and containers."""
    found: list[tuple[Callable[[Any], Any], Any]] = []
    seen: set[int] = set()
    queue = [*holders]
    while queue and len(seen) < most:
        item = queue.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, Tensor, type, nn.Module)):
            continue
        seen.add(id(item))
        generator = generator_state(item)
        if generator is not None:
            found.append(generator)
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple)):
            queue.extend(item[:1000])  # a list of transforms is short; a list of a million file names is data
        else:
            queue.extend(_inside(item))
    return found


def _inside(item: object) -> list[object]:
    """What an object keeps: attributes, slots, and of a function what it was made with."""
    found = [*getattr(item, "__dict__", {}).values()]
    for base in type(item).__mro__:
        slots = vars(base).get("__slots__", ())
        found += [getattr(item, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]
    if isinstance(item, functools.partial):
        found += [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, types.MethodType):
        found.append(item.__self__)
    if isinstance(item, types.FunctionType):
        found += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
        for cell in item.__closure__ or ():
            with suppress(ValueError):  # empty
                found.append(cell.cell_contents)
    return found


@contextmanager
def _eval_flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # DTensor has moved between versions of torch


@contextmanager
def _without_sharding(model: nn.Module) -> Iterator[None]:
    """Leave out the hooks of ``torch.distributed``, which change weights, inputs and the state of the sharding."""
    for module in model.modules():
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):  # it has moved, too
            module.reshard()  # type: ignore[operator]  # a validation leaves some together, in reduced precision
    originals: list[tuple[dict[str, Any], str, Any]] = []
    sharded = any(_is_sharded(parameter) for parameter in model.parameters())
    for module in model.modules() if sharded else ():
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = vars(module)[name]
            kept = {key: hook for key, hook in hooks.items() if not _is_of_torch_distributed(hook)}
            originals.append((vars(module), name, hooks))
            vars(module)[name] = type(hooks)(kept)
    try:
        yield
    finally:
        for attributes, name, hooks in originals:
            attributes[name] = hooks


def _is_of_torch_distributed(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.")


@contextmanager
def _stand_in_tensors(model: nn.Module, dtype: torch.dtype | None, detached: bool) -> Iterator[None]:
    """Let the model work on copies of parameters and buffers, which a forward may write to: whole, cast or detached.

    A parameter of the right type stays the object that it is, for a model may look things up by it: it gets the memory
    of its copy.
    """
    copies: dict[int, Tensor] = {}  # a tensor that several modules share stays shared
    with ExitStack() as stack:

        def stand_in(tensor: Tensor, is_buffer: bool) -> Tensor:
            if id(tensor) not in copies:
                if type(tensor) is nn.Parameter and _is_plain(tensor) and not _is_cast(tensor, dtype):
                    stack.callback(_give_back, tensor, tensor.data, tensor.requires_grad)
                    tensor.data = copied(tensor)
                    tensor.requires_grad_(tensor.requires_grad and not detached)
                    copies[id(tensor)] = tensor
                else:
                    copies[id(tensor)] = _stand_in(tensor, dtype, is_buffer, detached)
            return copies[id(tensor)]

        for module in model.modules():
            for store, is_buffer in ((module._buffers, True), (module._parameters, False)):
                for name, tensor in list(store.items()):
                    if tensor is None:
                        continue
                    replacement = stand_in(tensor, is_buffer)
                    if replacement is not tensor:
                        stack.callback(store.__setitem__, name, tensor)  # type: ignore[arg-type]
                        store[name] = replacement  # type: ignore[assignment]
            if (dtype is not None or detached) and isinstance(module, nn.RNNBase):
                # They stand in a second place as well, which comes back with the attributes.
                module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]  # type: ignore[misc]
        yield


def _give_back(parameter: nn.Parameter, memory: Tensor, requires_grad: bool) -> None:
    parameter.data = memory
    parameter.requires_grad_(requires_grad)


def _is_cast(tensor: Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is no more than its values, and autograd takes it."""
    return not (_is_sharded(tensor) or tensor.is_inference() or tensor.is_meta)


def _stand_in(tensor: Tensor, dtype: torch.dtype | None, is_buffer: bool, detached: bool) -> Tensor:
    sharded, cast = _is_sharded(tensor), _is_cast(tensor, dtype)
    plain = tensor.detach() if cast or detached or is_buffer or sharded else tensor
    plain = plain.full_tensor() if sharded else plain  # type: ignore[attr-defined]
    if cast:
        return plain.to(dtype)
    if type(plain) is Tensor and _is_plain(plain):
        return copied(plain)
    return plain.clone() if is_buffer or plain.is_inference() else plain  # another kind is more than its values


@contextmanager
def _plain_kernels(model: nn.Module) -> Iterator[None]:
    """Full float32, no compiled code, and no fused kernel between us and the non-linearities."""
    with ExitStack() as stack:
        _without_reduced_precision(stack)
        fastpath = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            libraries: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
            for library in libraries:
                stack.callback(setattr, library, "enabled", library.enabled)
                library.enabled = False
        compiled = any(type(module).__name__ == "OptimizedModule" for module in model.modules())
        if "torch._dynamo" in sys.modules:  # otherwise nothing has been compiled, and the import takes seconds
            if hasattr(torch.compiler, "set_stance"):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                if compiled:  # torch advises against global hooks on these
                    stack.enter_context(warnings.catch_warnings())
                    warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global")
            elif compiled:
                raise ValueError(
                    f"`model` holds a compiled module, which cannot be looked into with torch {torch.__version__}: "
                    "use torch >= 2.6, or measure the module that was given to `torch.compile`."
                )
        yield


def _without_reduced_precision(stack: ExitStack) -> None:
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        # Setting the legacy switches as well would make reading them raise, so only what is reduced is touched.
        switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
        for switch in (*switches, backends.mkldnn.conv, backends.mkldnn.rnn):
            if switch.fp32_precision in ("tf32", "bf16"):
                stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
                switch.fp32_precision = "ieee"
    else:
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        stack.callback(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32)
        backends.cudnn.allow_tf32 = False
