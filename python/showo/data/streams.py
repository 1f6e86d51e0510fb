"""The rows of a training step by number: which samples they take, and the micro-batches that they make up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from showo.batch import Batch
from showo.data.faults import Drawn, Pool
from showo.data.micro_batch import RowBatch
from showo.data.rows import Format, PictureIds, RowParts
from showo.data.sample import Sample
from showo.data.tally import Tally
from showo.errors import ConfigError
from showo.seeds import seeded_random
from showo.tokens import Vocabulary

# The order of their rows in a batch. What a stream draws hangs on its number here: new ones go to the end.
STREAMS = ("t2i", "lm", "mmu", "lvg", "mmu_vit", "t2v", "v2v")


@dataclass(frozen=True)
class RowStream:
    """The rows of one format, numbered from 0 on through all steps.

    rows_per_step: of all micro-batches together. seed: of this stream alone.
    """

    name: str
    format: Format
    pool: Pool
    rows_per_step: int
    seed: int

    def draw(self, numbers: Sequence[int]) -> list[Drawn[RowParts]]:
        return self.pool.draw(numbers, self._parts)

    def draw_text_places(self, numbers: Sequence[int]) -> list[Drawn[list[int]]]:
        """How long the texts of these rows are (`Format.text_places`), and which samples they are of."""
        return self.pool.draw(
            numbers, lambda number, sample: self.format.text_places(sample, seeded_random(self.seed, 0, number))
        )

    def _parts(self, number: int, sample: Sample) -> RowParts:
        """Of a row and its sample. What is drawn for a row hangs on its number alone, whichever sample it gets."""
        return self.format.parts(sample, number, seeded_random(self.seed, 0, number))


class MicroBatches:
    """make(position) for `showo.data.loader.Loader`: position s * accumulate + m is micro-batch m of step s.

    A step takes the next `rows_per_step` rows of every stream, and each of its micro-batches an equal part of them.
    The rows are dealt to the ranks like cards, micro-batch after micro-batch and stream after stream, so that no rank
    ever has more than one row more than another; this is what `rank` of `ranks` gets.

    Raises ConfigError where a micro-batch has fewer rows than there are ranks.
    """

    def __init__(
        self,
        streams: Sequence[RowStream],
        vocabulary: Vocabulary,
        codes: int,
        accumulate: int,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.streams, self.vocabulary, self.codes, self.accumulate = streams, vocabulary, codes, accumulate
        self.rank, self.ranks = rank, ranks
        self._rows = sum(stream.rows_per_step for stream in streams) // accumulate
        if ranks > max(self._rows, 1):  # nothing may be held out
            raise ConfigError(
                f"a micro-batch has {self._rows} rows for {ranks} ranks: more rows, or a smaller accumulate"
            )

    def __call__(self, position: int) -> RowBatch:
        return self.of(self.numbers(position))

    def numbers(self, position: int) -> dict[str, range]:
        """Of this rank's rows of a micro-batch, stream by stream."""
        step, micro = divmod(position, self.accumulate)
        found, dealt = {}, position * self._rows
        for stream in self.streams:
            count = stream.rows_per_step // self.accumulate
            first = step * stream.rows_per_step + micro * count
            found[stream.name] = range(first, first + count)[(self.rank - dealt) % self.ranks :: self.ranks]
            dealt += count
        return found

    def of(self, numbers: Mapping[str, range]) -> RowBatch:
        """The rows of these numbers, stream by stream, packed."""
        pictures = PictureIds(self.vocabulary, self.codes)
        batches: list[Batch] = []
        tally = Tally()
        drawn: dict[str, list[Drawn[None]]] = {}
        for stream in self.streams:
            found = stream.draw(numbers.get(stream.name, ()))
            if not found:
                continue
            drawn[stream.name] = [each.facts() for each in found]
            batch, hidden = stream.format.batch([each.value for each in found], pictures)
            images = sum(len(each.value.pictures) for each in found)
            tally += Tally(images, 0, batch.input_ids.numel(), hidden.codes, hidden.hidden)
            batches.append(batch)
        packed = Batch.pack(batches, self.vocabulary.pad)
        tokens = packed.input_ids.numel()
        tally += Tally(tokens=tokens, padding=-tokens)
        return RowBatch.of(packed, tally, drawn, pictures.pixels, self.vocabulary)
