"""LLaVA's conversations: a JSON list of {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}.

"image" is a path, a list of paths, or absent. "<image>" in the questions marks where pictures belong; a row shows all
pictures before the first question, as the released code does, and the marks go. A conversation that begins with an
answer loses it, as there; one that ends with a question, which nothing answers, is no use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from showo.data.patterns import find_paths
from showo.data.sample import Conversation, Turn
from showo.data.sources.config import SourceConfig
from showo.data.sources.json_samples import JsonSamples, picture
from showo.errors import SampleError

MARK = "<image>"
_ROLES = ("human", "gpt")
_WRONG = "wrong conversation"


class Llava:
    kind = Conversation

    def __init__(self, config: SourceConfig, cache: Path) -> None:
        self.name = config.describe()
        self.entries = JsonSamples(find_paths(config.files), config.images, "conversations", cache)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Conversation:
        place, folder, entry = self.entries.read(index)
        key = str(entry.get("id", Path(place).name))
        origin = f"{place}: {key}" if "id" in entry else place
        names = entry.get("image")
        names = names if isinstance(names, list) else [] if names is None else [names]
        turns, marks = _turns(entry.get("conversations"), origin)
        if marks not in (0, len(names)):
            raise SampleError(f"{origin}: {marks} times {MARK} for {len(names)} pictures", _WRONG)
        return Conversation(key, tuple(picture(folder, name, origin) for name in names), turns)


def _turns(said: Any, origin: str) -> tuple[tuple[Turn, ...], int]:
    """Questions with answers, and how many marks of pictures they had."""
    said = said if isinstance(said, list) else []
    if said and isinstance(said[0], dict) and said[0].get("from") == _ROLES[1]:
        said = said[1:]
    texts = [_text(part, _ROLES[number % 2], origin) for number, part in enumerate(said)]
    if not texts or len(texts) % 2:
        raise SampleError(f"{origin}: expected questions and answers in turn, got {len(texts)} texts", _WRONG)
    if any(MARK in answer for answer in texts[1::2]) or not all(texts[1::2]):
        raise SampleError(f"{origin}: an answer is empty or holds {MARK}", _WRONG)
    marks = sum(question.count(MARK) for question in texts[::2])
    turns = zip((question.replace(MARK, "").strip() for question in texts[::2]), texts[1::2])
    return tuple(Turn(question, answer) for question, answer in turns), marks


def _text(part: Any, role: str, origin: str) -> str:
    if not isinstance(part, dict) or part.get("from") != role or not isinstance(part.get("value"), str):
        raise SampleError(f"{origin}: expected a text of {role!r}, got {part!r:.60}", _WRONG)
    return str(part["value"]).strip()
