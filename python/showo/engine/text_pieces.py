"""A text that grows id by id, given out piece by piece."""

from __future__ import annotations

from showo.tokens import TextTokenizer

BROKEN = "\ufffd"  # what the bytes of half a character become


class TextPieces:
    """Text of ids as far as what follows cannot change it: some characters are several ids.

    ids: all that were added. text: all that was given out.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer

    def add(self, id_: int) -> str:
        """What is new in the text with this id, which may be nothing yet."""
        self.ids.append(id_)
        text = self._tokenizer.decode(self.ids).strip()
        return "" if text.endswith(BROKEN) else self._given(text)

    def end(self) -> str:
        """What is left to be given out, where no id follows."""
        return self._given(self._tokenizer.decode(self.ids).strip())

    def _given(self, text: str) -> str:
        piece, self.text = text[len(self.text) :], text
        return piece
