"""`showo train-vision-tower`: a small CLIP, for Show-o to see with where the published one is too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from showo.data.loader import Loader
from showo.data.pair_batches import PairBatch, PairBatches
from showo.data.sample import CaptionedPicture
from showo.data.sources.config import SourceConfig
from showo.devices import find_device, moved_to
from showo.model.contrastive import ContrastiveTowers, contrastive_loss, same_texts
from showo.tokens import TextTokenizer
from showo.train.config import VisionTowerTraining
from showo.train.initial import fresh_model
from showo.train.loop import TrainLoop, train
from showo.train.parallel import Parallel
from showo.train.pools import check_apart, open_samples
from showo.train.ranks import refuse_ranks


def train_vision_tower(
    config: VisionTowerTraining, run: Path, *, resume: bool = False, console: Console | None = None
) -> TrainLoop[PairBatch]:
    """Trains a vision tower into `run`; returns the finished loop. Raises as `train` and the readers do."""
    refuse_ranks("showo train-vision-tower")
    return train(lambda: vision_tower_loop(config, run, console), run, resume=resume)


def vision_tower_loop(config: VisionTowerTraining, run: Path, console: Console | None = None) -> TrainLoop[PairBatch]:
    """The towers, the data and the loss of `train_vision_tower`, ready to run."""
    device = find_device(config.device)
    tokenizer = TextTokenizer.from_file(config.text_tokenizer)
    build = partial(ContrastiveTowers, config.model, config.resolution, tokenizer.text_vocab_size)
    model = fresh_model(build, config.seed).to(device)
    pairs = pair_batches("data", config, config.data, tokenizer)
    data = Loader(pairs, workers=config.workers, prefetch=config.prefetch)
    check_apart({"data": config.data}, {"held_out": config.held_out})
    held_out = pair_batches("held_out", config, config.held_out, tokenizer) if config.held_out else None

    def compared(model: ContrastiveTowers, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Logits of a batch, and its texts on the device."""
        pixels, texts, lengths = (moved_to(device, each) for each in (batch.pixels, batch.texts, batch.lengths))
        return model(pixels, texts, lengths), texts

    def loss(
        batch: PairBatch, counts: Mapping[str, float], generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return contrastive_loss(*compared(model, batch)) * (len(batch.pixels) / counts["pictures"]), {}

    def validate(model: ContrastiveTowers, step: int) -> tuple[Mapping[str, float], Mapping[str, Image.Image]]:
        if held_out is None:
            return {}, {}
        found = [
            retrieval(*compared(model, held_out.of(numbers))) for numbers in held_out.first(config.validation_samples)
        ]
        return {name: float(torch.cat([each[name] for each in found]).mean()) for name in found[0]}, {}

    pools = {"pictures": pairs.pool}
    return TrainLoop(
        config,
        Parallel(model),
        run,
        data=data,
        pools=pools,
        loss=loss,
        validate=validate,
        attach=model.save_pretrained,  # of the towers, the one that is used afterwards, as transformers reads it
        console=console,
    )


def pair_batches(
    key: str, config: VisionTowerTraining, sources: Sequence[SourceConfig], tokenizer: TextTokenizer
) -> PairBatches:
    pool = open_samples(key, sources, (CaptionedPicture,), config.seed)
    size = config.batch // config.accumulate
    return PairBatches(pool, config.resolution, size, tokenizer, config.model.max_text_len, config.seed)


def retrieval(logits: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """float [n], 1 where the likeliest text of a picture among all is one of its own, and the other way round."""
    same = same_texts(texts)
    rows = torch.arange(len(same), device=same.device)
    return {
        "caption_found": same[rows, logits.argmax(1)].float(),
        "picture_found": same[logits.argmax(0), rows].float(),
    }
