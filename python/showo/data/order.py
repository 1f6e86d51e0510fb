"""Which sample comes when: pure functions of a seed and a position, with no state to save and no table to hold.

The state of the data of a training is the position alone. Any process can ask for any position, so that a resumed run,
also one with another number of ranks or workers, sees the samples that it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from showo.errors import ConfigError
from showo.seeds import hashed_words

MIXTURE_BLOCK = 10_000  # positions in which every source has its exact share
_ROUNDS = 8
_FEW = 4096


class Permutation:
    """A permutation of 0 .. n - 1 of which any value is computed alone, chosen by a seed and counters.

    A Feistel network permutes the least power of two that holds n: in each round, one half of the bits is changed by a
    hash of the other, which can be undone whatever the hash. Values that come out at n or above go in again until they
    are below (cycle walking), which keeps it a permutation and takes two rounds on average at most. Few values, for
    which a network has too few bits, are put in the order of their hashes.
    """

    def __init__(self, n: int, seed: int, *counters: int) -> None:
        bits = (n - 1).bit_length()
        self.n = n
        self._keys = hashed_words(seed, *counters, count=_ROUNDS)
        self._shift = np.uint64(bits // 2)
        self._low = np.uint64((1 << (bits // 2)) - 1)
        self._high = np.uint64((1 << (bits - bits // 2)) - 1)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values int64 [any], each from 0 to n - 1, to int64 of the same shape."""
        if self.n <= _FEW:
            return np.argsort(_mixed(np.arange(self.n, dtype=np.uint64) ^ self._keys[0]), kind="stable")[values]
        found = self._permute(values.astype(np.uint64))
        while (outside := found >= self.n).any():
            found[outside] = self._permute(found[outside])
        return found.astype(np.int64)

    def _permute(self, values: np.ndarray) -> np.ndarray:
        high, low = values >> self._shift, values & self._low
        for round_, key in enumerate(self._keys):
            if round_ % 2:
                low = low ^ (_mixed(high ^ key) & self._low)
            else:
                high = high ^ (_mixed(low ^ key) & self._high)
        return high << self._shift | low


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of uint64 values depends on all bits that went in."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


class Shuffled:
    """An endless shuffled order over `n` samples: epoch after epoch, each a permutation of its own.

    block: 0 mixes all samples. Else runs of `block` samples that follow one another in their files stay together: an
    epoch goes through such blocks in random order, and mixes those of `window` blocks at a time. The runs begin at
    other samples in every epoch.
    """

    def __init__(self, n: int, seed: int, *, block: int = 0, window: int = 4) -> None:
        if n < 1:
            raise ValueError(f"Shuffled: n must be at least 1, got {n}")
        self.n, self.seed = n, seed
        self.block, self.window = min(block, n), window

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Samples int64 [any] at positions int64 [any] from 0 on."""
        epochs, places = np.divmod(positions, self.n)
        samples = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            samples[epochs == epoch] = self._of_epoch(epoch, places[epochs == epoch])
        return samples

    def indices(self, start: int, count: int) -> list[int]:
        return self.at(np.arange(start, start + count)).tolist()

    def _of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if not self.block:
            return Permutation(self.n, self.seed, epoch)(places)
        size = self.window * self.block
        mixed = np.empty_like(places)
        for window in np.unique(places // size).tolist():
            inside, start = places // size == window, window * size
            permutation = Permutation(min(size, self.n - start), self.seed, epoch, window)
            mixed[inside] = start + permutation(places[inside] - start)
        blocks, offsets = np.divmod(mixed, self.block)
        whole = self.n // self.block  # what is left over is a shorter block, always the last
        blocks[blocks < whole] = Permutation(whole, self.seed, epoch)(blocks[blocks < whole])
        first = int(hashed_words(self.seed, epoch)[0]) % self.n  # the sample with which the first block begins
        return (first + blocks * self.block + offsets) % self.n


class Mixture:
    """Sources mixed by weight, each in an endless order of its own.

    In every MIXTURE_BLOCK positions each source has its share to within one position (the largest remainders are
    rounded up), in a random order of turns; at its turns a source gives its own order, sample by sample.
    """

    def __init__(self, orders: Sequence[Shuffled], weights: Sequence[float], seed: int) -> None:
        """Raises ConfigError where the weight of a source is too small for a turn in MIXTURE_BLOCK positions."""
        self.orders, self.seed = list(orders), seed
        self.turns = _shares(weights)
        if not self.turns.all():
            least = f"{min(weights)} of {sum(weights)}"
            raise ConfigError(f"weight must be at least 1 in {MIXTURE_BLOCK} of all weights together, got {least}")
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the sources, and of the samples in them, at positions int64 [any] from 0 on; int64, same shape."""
        blocks, places = np.divmod(positions, MIXTURE_BLOCK)
        sources, turns = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            inside = blocks == block
            source_of, rank_of = self._turns_of(block)
            sources[inside] = source_of[places[inside]]
            turns[inside] = block * self.turns[sources[inside]] + rank_of[places[inside]]
        for source in np.unique(sources).tolist():
            turns[sources == source] = self.orders[source].at(turns[sources == source])
        return sources, turns

    def _turns_of(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Whose turn each place of a block is, and the how-manieth of this source in the block; the last are kept."""
        if self._last is None or self._last[0] != block:
            places = Permutation(MIXTURE_BLOCK, self.seed, block)(np.arange(MIXTURE_BLOCK))
            sources = np.searchsorted(np.cumsum(self.turns), places, "right")
            ranks = np.empty_like(sources)
            for source, turns in enumerate(self.turns):
                ranks[sources == source] = np.arange(turns)
            self._last = block, sources, ranks
        return self._last[1:]


def _shares(weights: Sequence[float]) -> np.ndarray:
    """MIXTURE_BLOCK positions divided by weight: int64 [sources], which add up to it."""
    exact = np.array(weights, np.float64) / sum(weights) * MIXTURE_BLOCK
    turns = np.floor(exact).astype(np.int64)
    largest = np.argsort(turns - exact, kind="stable")[: MIXTURE_BLOCK - int(turns.sum())]
    turns[largest] += 1
    return turns
