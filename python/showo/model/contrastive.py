"""A vision tower of one's own: it learns with a tower of texts which caption belongs to which picture, as CLIP did.

Both towers are those of `transformers`' CLIPModel (arXiv 2103.00020). What is saved is the vision tower alone, as a
CLIPVisionModel, which `showo.model.clip.ClipTower` loads and Show-o sees with.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from showo.config import check_types
from showo.errors import ConfigError
from showo.files import atomic_path, atomic_write_text
from showo.model.clip import PixelNorm, load_transformers
from showo.model.weight_files import WEIGHTS_NAME
from showo.model.weights import CONFIG_NAME

_VISION = "vision_model."
_MAX_SCALE = 100.0  # of the similarities, as in CLIP


@dataclass(frozen=True)
class TowersConfig:
    """Sizes of the two towers, which are equally wide. A picture becomes patches of patch_size x patch_size pixels.

    Show-o sees with the states before the last of `num_layers`, so at least two are needed.
    """

    patch_size: int = 8
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 512
    text_layers: int = 2
    max_text_len: int = 48

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            least = 2 if field.name in ("num_layers", "max_text_len") else 1
            if getattr(self, field.name) < least:
                raise ConfigError(
                    f"TowersConfig: {field.name} must be at least {least}, got {getattr(self, field.name)}"
                )
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"TowersConfig: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )

    def check_side(self, side: int) -> None:
        """Raises ConfigError where pictures of `side` x `side` pixels are no whole number of patches."""
        if side % self.patch_size:
            raise ConfigError(f"resolution must be a multiple of model.patch_size {self.patch_size}, got {side}")


class ContrastiveTowers(nn.Module):
    """Two towers that turn pictures and texts into points of one sphere. Names of parameters are those of CLIPModel.

    side: of the pictures, in pixels.
    """

    def __init__(self, config: TowersConfig, side: int, text_vocab_size: int) -> None:
        super().__init__()
        transformers = load_transformers("a vision tower")
        width = config.hidden_size
        shared = {
            "hidden_size": width,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": config.num_heads,
            "projection_dim": width,
        }
        pictures = {"image_size": side, "patch_size": config.patch_size, "num_hidden_layers": config.num_layers}
        texts = {
            "vocab_size": text_vocab_size,
            "max_position_embeddings": config.max_text_len,
            "num_hidden_layers": config.text_layers,
            # The text model looks for its end mark by this id; where a text ends is said by its length here.
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
        }
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config={**shared, **pictures}, text_config={**shared, **texts}, projection_dim=width
            )
        )
        self.vision_config = clip.config.vision_config
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        self.text_model, self.text_projection = clip.text_model, clip.text_projection
        self.logit_scale = clip.logit_scale
        self.pixel_norm = PixelNorm()

    def forward(self, pixels: Tensor, texts: Tensor, lengths: Tensor) -> Tensor:
        """Similarities [pictures, texts], scaled as logits.

        pixels: uint8 [pictures, 3, side, side]. texts: int64 [texts, L], ids in rows, of which the first `lengths`
        (int64 [texts]) are the text. A text is what its last id has seen.
        """
        pictures = self.visual_projection(self.vision_model(pixel_values=self.pixel_norm(pixels)).pooler_output)
        states = self.text_model(input_ids=texts).last_hidden_state
        last = states[torch.arange(len(texts), device=texts.device), lengths - 1]
        scale = self.logit_scale.exp().clamp(max=_MAX_SCALE)
        return scale * F.normalize(pictures, dim=-1) @ F.normalize(self.text_projection(last), dim=-1).T

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the vision tower into a folder: model.safetensors and config.json, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tower = {n: t.detach().cpu().contiguous() for n, t in self.state_dict().items() if n.startswith(_VISION)}
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            save_file(tower, temporary, metadata={"format": "pt"})
        self.vision_config.architectures = ["CLIPVisionModel"]
        atomic_write_text(folder / CONFIG_NAME, self.vision_config.to_json_string(use_diff=False))
        return folder


def contrastive_loss(logits: Tensor, texts: Tensor) -> Tensor:
    """Mean cross-entropy of finding the text of each picture among all, and the picture of each text.

    logits: [n, n], where picture i belongs to text i. texts: int64 [n, L]; equal ones belong to each other's pictures
    just as well, in equal shares.
    """
    same = same_texts(texts).to(logits.dtype)
    wanted = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


def same_texts(texts: Tensor) -> Tensor:
    """bool [n, n]: which of texts [n, L] are equal."""
    return (texts[:, None] == texts[None]).all(-1)
