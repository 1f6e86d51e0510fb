"""How many samples a second the readers of data give, and that they hold nothing in memory.

    python -m benchmarks.bench_data [--samples 20000] [--read 100000] [--side 64] [--only webdataset,codes]

Writes `--samples` samples of every layout into a temporary folder, opens each source twice (without an index and with
one), then draws an epoch to fill what is kept of row groups and files, and `--read` samples more, in shuffled order: as
they are, and a part of them with the pictures decoded. Printed, per layout: seconds to make the index and to open it
again, samples a second, and by how much the memory that belongs to the process alone (RssAnon) has grown with the
`--read` samples.
One process; workers of a DataLoader do the same side by side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from showo.data.faults import Pool
from showo.data.make_assets import encode_png
from showo.data.sample import CaptionedPicture, Conversation, Picture, PictureSequence, Sample
from showo.data.sources import open_source
from showo.data.sources.config import SourceConfig
from showo.data.tar import write_tar

SHARD = 1000  # samples in a tar
CAPTION = "a photo of something that takes a sentence to be described, number {}"
TEXT = "words of a document " * 150  # 3,000 characters, as an average web page has


def pictures(side: int) -> list[bytes]:
    """A few PNG files of noise on a gradient, which compress as photographs do."""
    random = np.random.default_rng(0)
    gradient = np.linspace(0, 200, side)[:, None, None] + random.integers(0, 40, (16, side, side, 3))
    return [encode_png(Image.fromarray(pixels.astype(np.uint8))) for pixels in gradient]


def write_webdataset(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    for start in range(0, count, SHARD):
        files = [
            file
            for n in range(start, min(start + SHARD, count))
            for file in ((f"{n:08}.png", pngs[n % 16]), (f"{n:08}.txt", CAPTION.format(n).encode()))
        ]
        write_tar(folder / f"{start // SHARD:05}.tar", files)
    return SourceConfig("webdataset", [str(folder / "*.tar")])


def write_recaptioned(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    config = write_webdataset(folder, count, pngs)
    lines = (json.dumps({"key": f"{n:08}", "caption": CAPTION.format(n)}) + "\n" for n in range(count))
    (folder / "captions.jsonl").write_text("".join(lines))
    config.captions = [str(folder / "captions.jsonl")]
    return config


def write_imagenet(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    names = [f"n{number:08}" for number in range(max(1, count // SHARD))]
    for n in range(count):
        (folder / "root" / names[n % len(names)]).mkdir(parents=True, exist_ok=True)
        (folder / "root" / names[n % len(names)] / f"{n}.png").write_bytes(pngs[n % 16])
    (folder / "names").write_text("".join(f"{name} thing, object\n" for name in names))
    return SourceConfig("imagenet", [str(folder / "root")], class_names=str(folder / "names"))


def write_codes(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    codes = np.random.default_rng(0).integers(0, 8192, (count, 256)).tolist()
    rows = {"key": [str(n) for n in range(count)], "codes": codes, "caption": [CAPTION.format(n) for n in range(count)]}
    pq.write_table(pa.table(rows), folder / "a.parquet", row_group_size=SHARD)
    return SourceConfig("codes", [str(folder / "a.parquet")])


def write_codes_in_blocks(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    config = write_codes(folder, count, pngs)
    config.block, config.window = SHARD, 4
    return config


def write_tar_text(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    write_tar(folder / "a.tar", [(f"{n}.txt", TEXT.encode()) for n in range(count)])
    return SourceConfig("tar_text", [str(folder / "a.tar")])


def write_parquet_text(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    texts = {"content": [f"{n} {TEXT}" for n in range(count)]}
    pq.write_table(pa.table(texts), folder / "a.parquet", row_group_size=SHARD)
    return SourceConfig("parquet_text", [str(folder / "a.parquet")], block=SHARD)


def write_llava(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    for n, png in enumerate(pngs):
        (folder / f"{n}.png").write_bytes(png)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A thing."}] * 3
    turns[2:] = [{"from": turn["from"], "value": turn["value"].removeprefix("<image>\n")} for turn in turns[2:]]
    entries = [{"id": str(n), "image": f"{n % 16}.png", "conversations": turns} for n in range(count)]
    (folder / "a.json").write_text(json.dumps(entries))
    return SourceConfig("llava", [str(folder / "a.json")])


def write_sequences(folder: Path, count: int, pngs: list[bytes]) -> SourceConfig:
    for n, png in enumerate(pngs):
        (folder / f"{n}.png").write_bytes(png)
    lines = [
        {"id": str(n), "frames": [{"image": f"{(n + i) % 16}.png", "caption": CAPTION.format(i)} for i in range(3)]}
        for n in range(count)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return SourceConfig("sequences", [str(folder / "a.jsonl")])


WRITERS: dict[str, Callable[[Path, int, list[bytes]], SourceConfig]] = {
    "webdataset": write_webdataset,
    "webdataset, captions beside": write_recaptioned,
    "imagenet": write_imagenet,
    "codes": write_codes,
    "codes, in blocks": write_codes_in_blocks,
    "tar_text": write_tar_text,
    "parquet_text, in blocks": write_parquet_text,
    "llava": write_llava,
    "sequences": write_sequences,
}


def own_memory() -> int:
    """Bytes of memory that belong to this process alone: not files that are mapped, which the system may let go."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def decoded(sample: Sample) -> int:
    """Decodes the pictures of a sample; how many there are."""
    found: Sequence[Picture] = ()
    if isinstance(sample, CaptionedPicture):
        found = [sample.picture]
    elif isinstance(sample, Conversation):
        found = sample.pictures
    elif isinstance(sample, PictureSequence):
        found = [frame.picture for frame in sample.frames]
    return sum(picture.codes is None and picture.open().width > 0 for picture in found)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def draw(pool: Pool, start: int, count: int, make: Callable[[Sample], object]) -> None:
    """Samples of a pool, each given to `make`."""
    for position in range(start, start + count, 64):
        pool.draw(range(position, min(position + 64, start + count)), lambda _, sample: make(sample))


def measure(config: SourceConfig, cache: Path, read: int) -> list[str]:
    index_time, _ = seconds(lambda: open_source(config, cache))
    open_time, source = seconds(lambda: open_source(config, cache))
    pool = Pool([source], [config], seed=0)
    draw(pool, 0, len(source), id)
    before = own_memory()
    read_time, _ = seconds(lambda: draw(pool, len(source), read, id))
    rise = own_memory() - before
    part = max(1, read // 50)
    decode_time, _ = seconds(lambda: draw(pool, 0, part, decoded))
    rates = [f"{read / read_time:,.0f}", f"{part / decode_time:,.0f}"]
    return [f"{len(source):,}", f"{index_time:.2f}", f"{open_time:.3f}", *rates, f"{rise / 2**20:+.1f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--read", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--only", default=",".join(WRITERS), help="layouts, as in the table, up to their comma")
    options = parser.parse_args(arguments)
    table = Table("layout", "samples", "index s", "open s", "samples/s", "with pictures decoded", "memory, MiB")
    for name, write in WRITERS.items():
        if name.partition(",")[0] not in options.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = write(Path(folder), options.samples, pictures(options.side))
            table.add_row(name, *measure(config, Path(folder) / "cache", options.read))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
