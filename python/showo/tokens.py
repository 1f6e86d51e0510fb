"""Token ids: the one vocabulary that text, task marks and image codes share, and the text tokenizer.

This is the only module that knows where an id lies:

    0 .. text-1            text (byte-level BPE with its added tokens; `<|endoftext|>` begins and ends a text)
    text + 0 .. text + 9   [PAD] <|soi|> <|eoi|> <|sov|> <|eov|> <|t2i|> <|mmu|> <|t2v|> <|v2v|> <|lvg|>
    text + 10 ..           image codes, `codebook_size` of them
    last                   the mask token

With the released model's 50295 text ids and 8192 codes: pad 50295, image codes 50305..58496, mask 58497.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from showo.errors import CheckpointError, MissingCheckpointError
from showo.files import atomic_write_text, local_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS: tuple[str, ...] = (
    "[PAD]",
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """Where every kind of id lies, from the two sizes that decide it.

    text_vocab_size: ids of the text tokenizer, its added tokens included.
    codebook_size: codes of the image tokenizer.
    """

    text_vocab_size: int
    codebook_size: int

    def __post_init__(self) -> None:
        for name in ("text_vocab_size", "codebook_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Vocabulary: {name} must be an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"Vocabulary: {name} must be at least 1, got {value}")

    @property
    def pad(self) -> int:
        return self.text_vocab_size

    @property
    def soi(self) -> int:
        """Start of image."""
        return self.text_vocab_size + 1

    @property
    def eoi(self) -> int:
        """End of image."""
        return self.text_vocab_size + 2

    @property
    def sov(self) -> int:
        """Start of video."""
        return self.text_vocab_size + 3

    @property
    def eov(self) -> int:
        """End of video."""
        return self.text_vocab_size + 4

    @property
    def t2i(self) -> int:
        """Task: text to image."""
        return self.text_vocab_size + 5

    @property
    def mmu(self) -> int:
        """Task: multimodal understanding."""
        return self.text_vocab_size + 6

    @property
    def t2v(self) -> int:
        return self.text_vocab_size + 7

    @property
    def v2v(self) -> int:
        return self.text_vocab_size + 8

    @property
    def lvg(self) -> int:
        return self.text_vocab_size + 9

    @property
    def image_offset(self) -> int:
        """Id of image code 0."""
        return self.text_vocab_size + len(SPECIAL_TOKENS)

    @property
    def image_range(self) -> tuple[int, int]:
        """First id of the image codes and the id after the last."""
        return self.image_offset, self.image_offset + self.codebook_size

    @property
    def mask_id(self) -> int:
        """The token that stands where an image code is still to be chosen: the last id."""
        return self.image_offset + self.codebook_size

    @property
    def size(self) -> int:
        return self.mask_id + 1

    def special_ids(self) -> dict[str, int]:
        """Id by token text, in the official order."""
        return {token: self.text_vocab_size + i for i, token in enumerate(SPECIAL_TOKENS)}


class TextTokenizer:
    """Plain text <-> text ids, on top of a `tokenizers` file (byte-level BPE).

    Only text goes in and comes out: `encode` never yields a task or image id, also when the text spells one
    ("<|soi|>"), and `decode` leaves special ids out. Texts are not framed here; prompting adds begin and end.

    The file must hold `<|endoftext|>`. It may hold the ten special tokens as added tokens; then they must be the
    last ones, in the official order.
    """

    def __init__(self, tokenizer: Tokenizer, *, source: str = "tokenizer") -> None:
        self._tokenizer = tokenizer
        eot = tokenizer.token_to_id(END_OF_TEXT)
        if eot is None:
            raise CheckpointError(f"{source}: no {END_OF_TEXT} token in the tokenizer")
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        present = [token for token, id_ in found.items() if id_ is not None]
        if present:
            size -= len(SPECIAL_TOKENS)
            expected = {token: size + i for i, token in enumerate(SPECIAL_TOKENS)}
            if found != expected:
                raise CheckpointError(
                    f"{source}: the special tokens must be the last ids in the order {', '.join(SPECIAL_TOKENS)}; "
                    f"found {found}"
                )
        self.text_vocab_size: int = size
        self.bos: int = eot
        self.eos: int = eot
        # Special tokens spelled in a text are text: nobody can smuggle a task or image token in.
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def from_file(cls, source: str | Path, *, fetch: bool = True) -> TextTokenizer:
        """Load `tokenizer.json`, given as the file, as the folder that holds it ("bundled:" included), or as a hub id.

        Raises CheckpointError, and MissingCheckpointError where nothing is there: see `resolve_folder` for `fetch`.
        """
        from tokenizers import Tokenizer

        from showo.model.weights import is_hub_id, resolve_folder  # loads torch

        path = Path(local_path(source))
        if not os.path.exists(path) and isinstance(source, str) and is_hub_id(source):
            path = resolve_folder(source, files=[TOKENIZER_NAME], fetch=fetch)
        if os.path.isdir(path):
            path = path / TOKENIZER_NAME
        if not os.path.isfile(path):
            raise MissingCheckpointError(f"no tokenizer at {path}")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer file: {error}") from error
        return cls(tokenizer, source=str(path))

    def save(self, path: str | Path) -> Path:
        """Write `tokenizer.json` into a folder (or to a .json path), atomically."""
        path = Path(path)
        if path.suffix != ".json":
            path.mkdir(parents=True, exist_ok=True)
            path = path / TOKENIZER_NAME
        atomic_write_text(path, self._tokenizer.to_str(pretty=True))
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        """For workers: the library forgets, when it is copied, that special tokens spelled in a text are text."""
        return _from_text, (self._tokenizer.to_str(),)

    def vocabulary(self, codebook_size: int) -> Vocabulary:
        return Vocabulary(self.text_vocab_size, codebook_size)

    def encode(self, text: str) -> list[int]:
        """Text ids of one text, without begin and end marks."""
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be a str, got {type(text).__name__}")
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once (in threads)."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("encode_batch: texts must be a sequence of str")
        return [list(e.ids) for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; ids that are not text, and `<|endoftext|>`, are left out."""
        text = [int(i) for i in ids if 0 <= int(i) < self.text_vocab_size and int(i) != self.eos]
        return str(self._tokenizer.decode(text, skip_special_tokens=True))


def _from_text(text: str) -> TextTokenizer:
    from tokenizers import Tokenizer

    return TextTokenizer(Tokenizer.from_str(text))
