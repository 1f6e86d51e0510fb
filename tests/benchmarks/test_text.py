"""The benchmark of text runs, at a small size."""

import pytest
import torch

from benchmarks import bench_text


def test_every_kind_of_weights(capsys) -> None:
    before = torch.get_num_threads()
    bench_text.main(["--hidden", "64", "--layers", "1", "--tokens", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "a token, read at" in line] == list(bench_text.KINDS)
    assert sum("the loop without a cache" in line for line in lines) == 1 + 2 + 2
    assert torch.get_num_threads() == before


def test_bytes_of_a_token() -> None:
    config = bench_text.sizes(64, 2)
    size = 64 * config.vocabulary.text_vocab_size + 2 * 12 * 64 * 64
    for kind, width in (("float32", 4), ("bfloat16", 2)):
        assert bench_text.bytes_of_token(bench_text.make_model(config, kind)) == pytest.approx(
            width * size, rel=0.03
        )  # norms and biases
