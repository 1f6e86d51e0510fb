"""Names and shapes of the released checkpoints in their order: showo, showo_w_clip_vit, magvitv2."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

_SHAPES = json.loads((Path(__file__).parent / "official_shapes.json").read_text(encoding="utf-8"))
SHAPES: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    model: [(name, tuple(shape)) for name, shape in shapes.items()] for model, shapes in _SHAPES.items()
}


def shapes_of(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
