"""The one normal form of captions, prompts and questions, so that training and inference see the same text."""

from __future__ import annotations

import re
import unicodedata

from showo.errors import UserError

# Characters that draw nothing: byte order mark, soft hyphen, zero-width space, marks of writing direction, controls.
# The joiners U+200C and U+200D, variation selectors and emoji tags stay: they choose what is drawn.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """One line without what nobody sees: "\\ufeff red\\u00a0 apple\\n" becomes "red apple".

    Invisible characters go, every run of white space becomes one space, none is left at the ends, and the rest takes
    Unicode's composed form (NFC), in which nearly all text is written. A text in this form already comes back the same.

    Raises UserError for lone surrogates, which are what bytes become that are no valid text, and TypeError for what is
    no text at all.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    if _SURROGATE.search(text):
        raise UserError(f"text {text!r} holds bytes that are not valid in its encoding; expected UTF-8")
    return unicodedata.normalize("NFC", " ".join(_INVISIBLE.sub("", text).split()))
