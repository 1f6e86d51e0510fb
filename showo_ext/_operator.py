"""The torch operators of the package: one library that owns them all, and one class that registers an operator.

    _encode = Operator("lfq_encode(Tensor z, int offset) -> Tensor", run, fake)
    ids = _encode(z, 0)             # torch.ops.showo_ext.lfq_encode(z, 0)

torch's own `register_autograd` knows neither forward-mode derivatives (a silent zero) nor torch.func (an error about
`setup_context`). So while one of the two is at work, and only then, a call goes through an `autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

NAMESPACE = "showo_ext"


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
    ) -> None:
        self.name = schema.partition("(")[0]
        qualified = f"{NAMESPACE}::{self.name}"
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, run, "CPU")
        LIBRARY.impl(self.name, run, "CUDA")
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        torch.library.register_vmap(qualified, self._map, lib=LIBRARY)
        self._function: type[torch.autograd.Function] | None = None
        if backward is not None:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
            self._function = self._make_function(backward, setup_context)

    def __call__(self, *arguments: Any) -> Any:
        if self._function is not None and not torch.compiler.is_compiling() and transforms_are_active():
            return self._function.apply(*arguments)
        return self._registered(*arguments)

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
        self, backward: Callable[..., Any], setup_context: Callable[..., Any] | None
    ) -> type[torch.autograd.Function]:
        def no_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        def jvp(ctx: Any, *tangents: Any) -> None:
            raise NotImplementedError(
                f"{self.name} has no forward-mode derivative (jvp, jacfwd); showo_ext.reference has, or use vjp, jacrev"
            )

        rules = {
            "forward": self._registered,
            "setup_context": setup_context or no_context,
            "backward": backward,
            "vmap": self._map,
            "jvp": jvp,
        }
        return type(self.name, (torch.autograd.Function,), {key: staticmethod(rule) for key, rule in rules.items()})


def transforms_are_active() -> bool:
    """Whether the call is inside torch.func or inside a level of forward-mode derivatives."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
