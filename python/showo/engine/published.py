"""Published checkpoints: what they need besides their own files, and what these files do not say.

A released Show-o's repository holds the transformer alone. Its config.json comes from the model that the training began
with: those of 512x512 may still name the 256 codes of the 256x256 models, as showlab/Show-o, training/train.py, sets
the sizes of the vocabulary alone. So the number of codes, and the settings to draw with, are found by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from showo.engine.sampling import PRESETS, Sampling

# Of every model that is described here; hub ids, or folders of that name beside the transformer's.
IMAGE_TOKENIZER, TEXT_TOKENIZER = "showlab/magvitv2", "microsoft/phi-1_5"
_CACHED = "models--"  # how the hub's cache calls the folder of a repository: models--owner--name


@dataclass(frozen=True)
class Published:
    """num_vq_tokens: codes of a picture. sampling: how the model is drawn from.

    weights: the file of a repository that holds nothing else, not even a config.json; "" for all others.
    """

    num_vq_tokens: int
    sampling: Sampling
    weights: str = ""


_SHOWO, _SHOWO_512 = Published(256, PRESETS["show-o"]), Published(1024, PRESETS["show-o-512"])
_TURBO, _TURBO_512 = Published(256, PRESETS["show-o-turbo"]), Published(1024, PRESETS["show-o-turbo-512"])
_BY_NAME = {
    # showlab
    "show-o": _SHOWO,
    "show-o-w-clip-vit": _SHOWO,
    "show-o-512x512": _SHOWO_512,
    "show-o-w-clip-vit-512x512": _SHOWO_512,
    "show-o-512x512-wo-llava-tuning": _SHOWO_512,
    # SJTU-Deng-Lab: Show-o Turbo (arXiv 2502.05415), the first one also under a second name
    "show-o-turbo-256": _TURBO,
    "unicms-256": _TURBO,
    "show-o-turbo-512": _TURBO_512,
    # sanaka87: RecA (arXiv 2509.07295)
    "show-o-reca": _SHOWO,
    "show-o-512x512-reca": _SHOWO_512,
    # happyyifu: Mask-GRPO, a state dict of the model of 512x512
    "mask-grpo": Published(1024, PRESETS["show-o-512"], weights="mycheckpoint.pth"),
}


def published(source: str | Path) -> Published | None:
    """What is known of a hub id, or of a folder of the same name, also of one in the hub's cache."""
    parts = Path(source).parts
    cached = [part.rpartition("--")[2] for part in parts if part.startswith(_CACHED)]
    return _BY_NAME.get((cached or parts or ("",))[-1].lower())


def sampling_by_codes(num_vq_tokens: int) -> Sampling:
    """How a model of the released layout is drawn from that nothing is known of but the size of its pictures."""
    return PRESETS["show-o-512" if num_vq_tokens >= 1024 else "show-o"]
