"""A row of training as text: what stands where, what is to be predicted there, and what each place sees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from showo.batch import IGNORE, Batch
from showo.tables import aligned
from showo.tokens import END_OF_TEXT, TextTokenizer, Vocabulary

_HEADINGS = ("position", "input", "target")
_CODE, _HIDDEN, _FEATURE, _TEXT, _NONE = "code", "hidden code", "feature", "text", "nothing"
_PICTURE = (_CODE, _HIDDEN, _FEATURE)
_SHOWN = 30  # characters at each end of a long text
_MASK_WIDTH = 40


def draw_row(batch: Batch, texts: TextTokenizer, vocabulary: Vocabulary) -> str:
    """A table of the places of the batch's first row, and its mask (`OmniMask.draw`).

    Places of one kind share a line of the table: a text, of which what is learned and what is given stand apart, or the
    codes of a picture. Ids behind the vocabulary are codes too (see `showo.data.rows.PictureIds`).
    """
    ids, targets, positions = (part[0].tolist() for part in (batch.input_ids, batch.targets, batch.positions))
    spans = set() if batch.features is None else set(batch.features.places.tolist())
    kinds = [_FEATURE if place in spans else _kind(id_, texts, vocabulary) for place, id_ in enumerate(ids)]
    lines = [_HEADINGS]
    for _, run in groupby(range(len(ids)), lambda place: _group(kinds[place], targets[place])):
        places = list(run)
        first, last = places[0], places[-1] + 1
        lines.append(
            (
                f"{positions[first]}" + (f" to {positions[last - 1]}" if last > first + 1 else ""),
                _spell(ids[first:last], kinds[first:last], texts),
                _spell(targets[first:last], [_kind(t, texts, vocabulary) for t in targets[first:last]], texts),
            )
        )
    return "\n".join([*aligned(lines), "", batch.mask.draw(width=_MASK_WIDTH)])


def _kind(id_: int, texts: TextTokenizer, vocabulary: Vocabulary) -> str:
    """One of the kinds above; of a mark, its name."""
    if id_ == IGNORE:
        return _NONE
    if id_ == texts.eos:
        return END_OF_TEXT
    if id_ < vocabulary.text_vocab_size:
        return _TEXT
    if id_ == vocabulary.mask_id:
        return _HIDDEN
    marks = {mark: name for name, mark in vocabulary.special_ids().items()}
    return marks.get(id_, _CODE)


def _group(kind: str, target: int) -> tuple[str, bool]:
    """What neighbouring places of a line have in common; of a picture's places some are learned, as it happens."""
    return (_CODE, False) if kind in _PICTURE else (kind, target != IGNORE)


def _spell(ids: Sequence[int], kinds: Sequence[str], texts: TextTokenizer) -> str:
    """Ids in words: texts in quotes, marks by name, places of pictures counted."""
    words = []
    for kind, run in groupby(zip(ids, kinds), lambda pair: _CODE if pair[1] in (*_PICTURE, _NONE) else pair[1]):
        pairs = list(run)
        if kind == _TEXT:
            words.append(repr(_shortened(texts.decode(id_ for id_, _ in pairs))))
        elif kind == _CODE:
            words.append(_counted([kind for _, kind in pairs]))
        else:
            words.append(kind + (f" x {len(pairs)}" if len(pairs) > 1 else ""))
    return " ".join(words)


def _shortened(text: str) -> str:
    return text if len(text) <= 2 * _SHOWN + 5 else f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"


def _counted(kinds: Sequence[str]) -> str:
    """Of places of pictures, and of such without a target, how many there are: "23 codes, 41 hidden codes"."""
    counts = {kind: kinds.count(kind) for kind in (_CODE, _HIDDEN, _FEATURE)}
    said = [f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count]
    return ", ".join(said) or "-"
