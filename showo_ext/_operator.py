"""The torch operators of the package: one library that owns them all, and one class that registers an operator.

    _encode = Operator("lfq_encode(Tensor z, int offset) -> Tensor", run, fake)
    ids = _encode(z, 0)             # torch.ops.showo_ext.lfq_encode(z, 0)

A call takes one of three ways:

- torch's dispatcher, where something besides the kernel wants to see the call: torch.compile and torch.export, modes
  (fake tensors, FLOP counters), tensor subclasses, the meta device, the profiler.
- An `autograd.Function` under torch.func and forward-mode derivatives. The dispatcher's `register_autograd` knows
  neither: it gives a silent zero for forward-mode derivatives, and an error about `setup_context` under torch.func.
- Else the dispatcher would do nothing but find the implementation, through several layers of Python each time. Then
  the implementation is called at once, inside an `autograd.Function` if a gradient may be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

NAMESPACE = __name__.partition(".")[0]  # "showo_ext"; copies of the package have names, thus namespaces, of their own


def _plain_keys() -> frozenset[int]:
    """The sets of dispatch keys that ordinary tensors on the CPU and on CUDA have, as numbers.

    A subclass, a fake tensor, a tensor of torch.func or a lazily negated view has another set.
    """
    key, sets = torch._C.DispatchKey, []
    for device, autocast, autograd in (
        (key.CPU, key.AutocastCPU, key.AutogradCPU),
        (key.CUDA, key.AutocastCUDA, key.AutogradCUDA),
    ):
        inference = torch._C.DispatchKeySet(device) | torch._C.DispatchKeySet(autocast)
        normal = inference | torch._C.DispatchKeySet(autograd) | torch._C.DispatchKeySet(key.ADInplaceOrView)
        sets += [inference.raw_repr(), normal.raw_repr()]
    return frozenset(sets)


PLAIN_KEYS = _plain_keys()
PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def _own_library() -> Any:
    """The library that the operators are defined in. A second import of the package, after `sys.modules` was purged,
    takes the place of the first: torch keeps operators in the process, and refuses to define one twice.
    """
    kept = vars(getattr(torch.ops, NAMESPACE))  # lives as long as the process
    if "_library" in kept:
        kept["_library"]._destroy()
    kept["_library"] = torch.library.Library(NAMESPACE, "FRAGMENT")
    return kept["_library"]


LIBRARY = _own_library()


class Operator:
    """An operator for CPU and CUDA tensors; calling it calls `torch.ops.showo_ext.<name>`.

    Args:
        schema: "name(arguments) -> results", as torch.library has it.
        run: the implementation, which `launch` takes to the tensors' device.
        fake: returns empty results.
        backward, setup_context: as torch.library.register_autograd has them; without them results carry no gradient.
        cast: how many arguments, counted from the first, autocast casts to its dtype; all are tensors.

    torch.func.vmap calls the operator once per sample. grad, vjp and jacrev work if it has a backward; there is no
    forward-mode derivative (jvp, jacfwd, dual tensors): NotImplementedError.
    """

    def __init__(
        self,
        schema: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        *,
        backward: Callable[..., Any] | None = None,
        setup_context: Callable[..., Any] | None = None,
        cast: int = 0,
    ) -> None:
        self.name = schema.partition("(")[0]
        qualified = f"{NAMESPACE}::{self.name}"
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, run, "CPU")
        LIBRARY.impl(self.name, run, "CUDA")
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        torch.library.register_vmap(qualified, self._map, lib=LIBRARY)
        self._run, self._cast = run, cast
        if cast:
            LIBRARY.impl(self.name, self._autocast, "AutocastCPU")
            LIBRARY.impl(self.name, self._autocast, "AutocastCUDA")
        self._transformed = self._differentiated = self._registered
        if backward is not None:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
            self._transformed = self._make_function(self._registered, backward, setup_context).apply
            function = self._make_function(run, backward, setup_context)
            # The `apply` of the base class: Function's own looks for transforms of torch.func once more.
            self._differentiated = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._registered(*arguments)
        if transforms_are_active():
            return self._transformed(*arguments)
        if not dispatch_is_plain(arguments):
            return self._registered(*arguments)
        if self._cast and torch.is_autocast_enabled(arguments[0].device.type):
            arguments = self._cast_arguments(arguments)
        if torch.is_grad_enabled() and any_requires_grad(arguments):
            return self._differentiated(*arguments)
        return self._run(*arguments)

    def _cast_arguments(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = torch.get_autocast_dtype(arguments[0].device.type)
        return (*(x.to(dtype) for x in arguments[: self._cast]), *arguments[self._cast :])

    def _autocast(self, *arguments: Any) -> Any:
        """The rule of the dispatcher's autocast keys."""
        with torch.autocast(arguments[0].device.type, enabled=False):
            return self._registered(*self._cast_arguments(arguments))

    def _registered(self, *arguments: Any) -> Any:
        return getattr(getattr(torch.ops, NAMESPACE), self.name)(*arguments)

    def _map(self, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        """The rule of vmap: the samples one after the other, stacked."""
        results = [
            self(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
        return torch.stack(results), 0

    def _make_function(
        self, forward: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., Any] | None
    ) -> type[torch.autograd.Function]:
        def no_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        def jvp(ctx: Any, *tangents: Any) -> None:
            raise NotImplementedError(
                f"{self.name} has no forward-mode derivative (jvp, jacfwd); showo_ext.reference has, or use vjp, jacrev"
            )

        rules = {
            "forward": forward,
            "setup_context": setup_context or no_context,
            "backward": backward,
            "vmap": self._map,
            "jvp": jvp,
        }
        return type(self.name, (torch.autograd.Function,), {key: staticmethod(rule) for key, rule in rules.items()})


def transforms_are_active() -> bool:
    """Whether the call is inside torch.func or inside a level of forward-mode derivatives."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def any_requires_grad(arguments: tuple[Any, ...]) -> bool:
    """As `torch._C._any_requires_grad`, which torch 2.6 lacks."""
    for x in arguments:  # noqa: SIM110 (this takes two thirds of the time of `any`)
        if isinstance(x, torch.Tensor) and x.requires_grad:
            return True
    return False


def dispatch_is_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would take these arguments to autograd and the kernel and to nothing else."""
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    for x in arguments:
        if isinstance(x, torch.Tensor) and (
            type(x) not in PLAIN_TYPES or torch._C._dispatch_keys(x).raw_repr() not in PLAIN_KEYS
        ):
            return False
    return True
