"""How good is a checkpoint? Generation, description and reconstruction on the bundled pictures.

    python -m benchmarks.quality [--checkpoint FOLDER] [--count 200] [--sheet out/quality.png]

(a) A picture is generated for each of `count` training captions; among all pictures of the set, which are nearest to
it (squared distance of 16x16 thumbnails)? Reported: how often the right one is the nearest, or among the five
nearest. (b) `count` training pictures are described; reported: how often the text is exactly the caption. (c) Held-
out pictures go through the image tokenizer and back; reported: mean PSNR in dB.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from PIL import Image

from showo import ShowoPipeline
from showo.data.sources import read_pictures
from showo.pictures import save_image, to_tensor
from showo.sheets import sheet
from showo.train.tokenizer_losses import psnr

THUMBNAIL = 16
TRAIN, HELD_OUT = "bundled:emoji/train-*.tar", "bundled:emoji/val-*.tar"


def thumbnails(pictures: list[Image.Image]) -> torch.Tensor:
    """[N, 3 * 16 * 16] by box averaging."""
    small = [picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for picture in pictures]
    return torch.stack([to_tensor(picture).flatten() for picture in small])


def retrieval_ranks(generated: list[Image.Image], pictures: list[Image.Image], right: list[int]) -> torch.Tensor:
    """For each generated picture, how many pictures of the set are nearer than the right one. int64 [count]."""
    distance = torch.cdist(thumbnails(generated).double(), thumbnails(pictures).double())
    own = distance[torch.arange(len(right)), right]
    return (distance < own[:, None]).sum(1)


def measure(pipe: ShowoPipeline, count: int, seed: int, sheet_path: Path | None) -> dict[str, float]:
    train, held_out = read_pictures(TRAIN), read_pictures(HELD_OUT)
    pictures = [sample.picture.open() for sample in train + held_out]
    chosen = random.Random(seed).sample(range(len(train)), min(count, len(train)))
    captions = [train[i].caption for i in chosen]

    start = time.perf_counter()
    generated = pipe.generate(captions, seed=seed)
    generation_seconds = time.perf_counter() - start
    ranks = retrieval_ranks(generated, pictures, chosen)

    start = time.perf_counter()
    texts = pipe.describe([pictures[i] for i in chosen])
    description_seconds = time.perf_counter() - start

    held = torch.stack([to_tensor(picture) for picture in pictures[len(train) :]])
    tokenizer = pipe.image_tokenizer
    side = pictures[0].width // tokenizer.config.downsampling
    with torch.inference_mode():
        after = tokenizer.decode(tokenizer.encode(held), side, side)

    if sheet_path is not None:
        shown = 64
        pairs = [p for i, g in zip(chosen[:shown], generated) for p in (pictures[i], g)]
        labels = [t for i, text in zip(chosen[:shown], texts) for t in (train[i].caption, f"-> {text}")]
        save_image(sheet(pairs, labels, columns=16), sheet_path)
    return {
        "count": len(chosen),
        "generation_top1": float((ranks < 1).double().mean()),
        "generation_top5": float((ranks < 5).double().mean()),
        "description_exact": sum(t == c for t, c in zip(texts, captions)) / len(captions),
        "held_out_psnr_db": float(psnr(after, held).mean()),
        "seconds_per_generated_picture": generation_seconds / len(chosen),
        "seconds_per_description": description_seconds / len(chosen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder with showo/ and image_tokenizer/; default: the bundled one")
    parser.add_argument("--image-tokenizer", help="folder, where the checkpoint is a transformer's alone")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a sheet of true and generated pictures")
    arguments = parser.parse_args()
    pipe = ShowoPipeline.from_pretrained(arguments.checkpoint, image_tokenizer=arguments.image_tokenizer)
    print(json.dumps(measure(pipe, arguments.count, arguments.seed, arguments.sheet), indent=2))


if __name__ == "__main__":
    main()
