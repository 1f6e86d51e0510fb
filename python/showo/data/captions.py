"""Captions as a data set writes them, made into texts to learn from.

All captions take `clean_text`'s form. What the released model's training did beside that is done by option:

    persons         "<person>" (CC12M's stand-in for a name) becomes "a person", several in a row become "people"
    prefixes        stock beginnings of machine-written captions ("The image shows ...") go
    first_sentence  a long caption also counts as its first sentence alone, so that rows take either as often

The released code cleans its generation rows in all three ways, its captioning rows by `persons` alone. It puts one of
"a person", "someone", "somebody" by chance, as the text of a Python list (['a person']), which no reader wants: here
all are "a person". It takes a prefix out wherever it stands and leaves the rest as it is; here one only goes where a
sentence begins, and the sentence begins with a capital again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from showo.errors import SampleError, UserError
from showo.text import clean_text

MAX_CAPTION = 100_000  # characters; no text part of a row holds more than a fraction

_PEOPLE = re.compile(r"<person>(?:(?:,|\s|\band\b)*<person>)+")
_PREFIX = re.compile(
    r"(?:(?:(?:The|This) image (?:features|presents|showcases|captures|portrays|depicts|shows|is)"
    r"|In the (?:center of the|given) image,?|In (?:the|this) image,(?: we (?:can )?see)?|The image you've sent is,"
    r"|This is) )"
)
_AFTER_PREFIX = re.compile(r"(^|[.!?] )" + _PREFIX.pattern + r"(\S)")
_SENTENCE_END = re.compile(r"[.!?](?=\s)")


def clean_caption(caption: str, clean: Sequence[str] = ()) -> str:
    """A caption in its normal form, with the cleanings in `clean` that change a caption itself applied.

    Raises UserError for text that is not valid Unicode.
    """
    if "persons" in clean:
        caption = _PEOPLE.sub(" people ", caption).replace("<person>", " a person ")
    caption = clean_text(caption)
    if "prefixes" in clean:
        caption = _AFTER_PREFIX.sub(lambda match: match[1] + match[2].upper(), caption)
    return caption


def usable_captions(captions: object, clean: Sequence[str], origin: str) -> tuple[str, ...]:
    """All texts that may stand for a picture, cleaned, none twice, none empty.

    captions: as a file has them: a text, or a list of texts that each fit. `origin` stands for the file in messages.

    Raises:
        SampleError: no caption is there, or what is there is no text, is empty, too long, or no valid Unicode.
    """
    written = [captions] if isinstance(captions, str) else captions
    if not written:
        raise SampleError(f"{origin}: no caption", "no caption")
    if not isinstance(written, list) or not all(isinstance(caption, str) for caption in written):
        raise SampleError(
            f"{origin}: expected a caption, got {type(captions).__name__} {captions!r:.60}", "wrong caption"
        )
    if (longest := max(map(len, written))) > MAX_CAPTION:
        raise SampleError(f"{origin}: a caption of {longest} characters, more than {MAX_CAPTION}", "too large")
    try:
        texts = [clean_caption(caption, clean) for caption in written]
    except UserError as error:
        raise SampleError(f"{origin}: {error}", "wrong caption") from error
    if "first_sentence" in clean:
        texts += [text[: match.end()] for text in texts if (match := _SENTENCE_END.search(text))]
    if not any(texts):
        raise SampleError(f"{origin}: the caption is empty", "no caption")
    return tuple(dict.fromkeys(text for text in texts if text))
