"""Pictures that follow one another, such as GenHowTo's states and actions: one sequence a line of a .jsonl.

{"id": "1", "frames": [{"image": "1/0.png", "caption": "a bowl of flour"}, {"image": ..., "caption": ...}, ...]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from showo.data.captions import usable_captions
from showo.data.patterns import Folder, find_paths
from showo.data.sample import Frame, PictureSequence
from showo.data.sources.config import SourceConfig
from showo.data.sources.json_samples import JsonSamples, picture
from showo.errors import SampleError


class Sequences:
    kind = PictureSequence

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name, self.clean = config.describe(), config.clean
        self.entries = JsonSamples(find_paths(config.files), config.images, "frames", cache)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> PictureSequence:
        place, folder, entry = self.entries.read(index)
        key = str(entry.get("id", Path(place).name))
        frames = entry.get("frames")
        if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
            raise SampleError(f"{place}: expected frames, got {frames!r:.60}", "wrong sequence")
        origins = [f"{place}: {key}: frame {number}" for number in range(len(frames))]
        return PictureSequence(key, tuple(self._frame(*each) for each in zip(frames, origins, [folder] * len(frames))))

    def _frame(self, frame: dict[str, Any], origin: str, folder: Folder) -> Frame:
        (caption, *_) = usable_captions(frame.get("caption"), self.clean, origin)
        return Frame(picture(folder, frame.get("image"), origin), caption)
