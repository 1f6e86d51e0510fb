"""The order of samples: permutations without a table, blocks, mixtures, and that nothing but the position counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showo.data.order import MIXTURE_BLOCK, Mixture, Permutation, Shuffled
from showo.errors import ConfigError

blocks = st.sampled_from([(0, 4), (1, 1), (3, 2), (7, 4), (64, 1)])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    seed=st.integers(0, 2**63),
    start=st.integers(0, 500),
    count=st.integers(0, 400),
    block=blocks,
)
def test_shuffled_is_a_pure_function_and_visits_everything(
    n: int, seed: int, start: int, count: int, block: tuple[int, int]
) -> None:
    order = Shuffled(n, seed, block=block[0], window=block[1])
    whole = order.indices(0, start + count)
    assert order.indices(start, count) == whole[start:]
    for epoch in range(len(whole) // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    for block in (0, 4):
        orders = [Shuffled(40, seed, block=block).indices(epoch * 40, 40) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
        assert len(set(map(tuple, orders))) == 9
        assert list(range(40)) not in orders


def test_permutations_are_uniform() -> None:
    """All 24 permutations of 4 come equally often, and so does every value at every place, for few values and for
    powers of two and more. Limits: the chi-squared statistic lies above them once in a million times."""
    counts = Counter(tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(2400))
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 75  # 23 degrees of freedom
    for n in (300, 8192, 8193):
        places = np.array([0, 1, 2, 3, n // 2, n // 2 + 1, n - 2, n - 1])
        values = np.stack([Permutation(n, 1, seed)(places) for seed in range(1000)])
        for place, found in zip(places, values.T):
            count = np.histogram(found, 8, (0, n))[0]
            expected = np.histogram(np.arange(n), 8, (0, n))[0] * 1000 / n
            assert ((count - expected) ** 2 / expected).sum() < 43, (n, place)  # 7 degrees of freedom
        whole = Permutation(n, 2)(np.arange(n))
        assert len(np.unique(whole)) == n
        assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 5 / n**0.5  # neighbours are no longer neighbours


def test_a_permutation_of_billions_takes_no_table() -> None:
    n = 2_000_000_011
    values = Permutation(n, 5)(np.arange(100_000))
    assert len(np.unique(values)) == 100_000
    assert values.min() >= 0
    assert values.max() < n
    assert abs(values.mean() / n - 0.5) < 0.01


def test_blocks_are_read_in_runs_and_mixed_by_windows() -> None:
    n, block, window = 1000, 50, 4
    order = Shuffled(n, 11, block=block, window=window)
    firsts = set()
    for epoch in (0, 1):
        samples = np.array(order.indices(epoch * n, n))
        for part in samples.reshape(-1, block * window):
            runs = np.split(np.sort(part), np.flatnonzero(np.diff(np.sort(part)) > 1) + 1)
            assert len(runs) <= window + 1  # one may run over the end of the source
            assert (np.diff(part) == 1).mean() < 0.1  # samples of the runs alternate
            firsts |= {int(run[0]) % block for run in runs}
    assert len(firsts) >= 2  # the runs begin elsewhere in every epoch


def test_mixtures_have_exact_shares_and_every_source_keeps_its_own_order() -> None:
    orders = [Shuffled(n, seed) for seed, n in enumerate((100, 70, 5000))]
    sources, samples = Mixture(orders, [0.5, 1 / 6, 1 / 3], 3).at(np.arange(2 * MIXTURE_BLOCK))
    for block in (sources[:MIXTURE_BLOCK], sources[MIXTURE_BLOCK:]):
        assert np.bincount(block).tolist() == [5000, 1667, 3333]
    for number, order in enumerate(orders):
        found = samples[sources == number].tolist()
        assert found == order.indices(0, len(found))
    runs = np.diff(np.flatnonzero(np.diff(sources[:MIXTURE_BLOCK])))
    assert runs.max() < 40  # turns are spread


def test_any_division_among_ranks_and_workers_gives_the_same_samples() -> None:
    def mixture() -> Mixture:
        return Mixture([Shuffled(60, 1), Shuffled(900, 2, block=8, window=2)], [1, 2.5], 7)

    start, end = MIXTURE_BLOCK - 200, MIXTURE_BLOCK + 200
    whole = np.stack(mixture().at(np.arange(start, end)))
    for ranks in (2, 5):
        parts = [np.stack(mixture().at(np.arange(start + rank, end, ranks))) for rank in range(ranks)]
        assert all((whole[:, rank::ranks] == part).all() for rank, part in enumerate(parts))


def test_the_order_is_that_of_every_version() -> None:
    """Recorded: a run that is resumed by a later version goes on with the samples that it would have seen."""
    assert Shuffled(1000, 10086).indices(995, 10) == RECORDED_SHUFFLED
    assert Shuffled(100_000, 10086).indices(99_995, 10) == RECORDED_LARGE
    assert Shuffled(1000, 10086, block=16, window=2).indices(995, 10) == RECORDED_BLOCKS
    mixture = Mixture([Shuffled(1000, 1), Shuffled(50, 2)], [3, 1], 10086)
    assert np.stack(mixture.at(np.arange(9995, 10005))).T.tolist() == RECORDED_MIXTURE


RECORDED_SHUFFLED = [433, 568, 387, 798, 503, 999, 346, 252, 68, 853]
RECORDED_LARGE = [75403, 53517, 17413, 2061, 32803, 33911, 46925, 7725, 32807, 39102]
RECORDED_BLOCKS = [236, 240, 241, 238, 243, 810, 821, 822, 344, 341]
RECORDED_MIXTURE = [[1, 19], [0, 952], [1, 45], [0, 526], [0, 33], [1, 2], [0, 311], [1, 0], [0, 270], [0, 253]]


def test_a_weight_without_a_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight must be at least 1 in 10000 .*, got 1e-05 of 1\.00001"):
        Mixture([Shuffled(3, 1), Shuffled(3, 2)], [1, 1e-5], 0)
