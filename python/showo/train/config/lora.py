"""The configuration of adapters (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from showo.errors import ConfigError
from showo.intervals import NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, within
from showo.model.lora import TARGETS


@dataclass
class LoraOptions:
    """Adapters, which alone learn; see `showo.model.lora`. rank: 0 leaves them out. targets: names of layers."""

    rank: int = within(NOT_NEGATIVE, 0)
    alpha: float = within(POSITIVE, 16.0)
    dropout: float = within(SHARE_BELOW_ONE, 0.0)
    targets: list[str] = field(default_factory=lambda: list(TARGETS))

    def check(self, *, init_from: str, code_bits: bool) -> None:
        """Raises ConfigError where there are to be adapters that cannot be, or make no sense."""
        if not self.rank:
            return
        if find_spec("peft") is None:
            raise ConfigError("lora.rank needs peft: pip install 'showo_ext[lora]', or leave the option out")
        wrong = [name for name in self.targets if name not in TARGETS]
        if wrong or not self.targets:
            raise ConfigError(f"lora.targets must be some of {', '.join(TARGETS)}, got {wrong or '[]'}")
        if not init_from:
            raise ConfigError("init_from must be a checkpoint or a run where lora.rank is not 0, got ''")
        if code_bits:
            raise ConfigError("code_bits must be false where lora.rank is not 0: only adapters learn")
