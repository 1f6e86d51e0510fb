"""The package's own data are what its README says."""

from __future__ import annotations

from showo.data.patterns import find_paths
from showo.data.sources import read_documents, read_pictures


def test_bundled_pictures() -> None:
    train, val = read_pictures("bundled:emoji/train-*.tar"), read_pictures("bundled:emoji/val-*.tar")
    assert len(train) + len(val) >= 1200
    assert 0.03 < len(val) / (len(train) + len(val)) < 0.07
    assert not {sample.key for sample in train} & {sample.key for sample in val}
    assert len({sample.caption for sample in train}) == len(train)
    assert all(sample.picture.open().size == (64, 64) for sample in train[:20] + val[:20])
    assert sum(path.stat().st_size for path in find_paths(["bundled:emoji/*.tar"])) < 12e6


def test_bundled_text_is_long_enough_to_learn_from() -> None:
    assert sum(len(document.text) for document in read_documents("bundled:text/*.tar")) > 300_000
