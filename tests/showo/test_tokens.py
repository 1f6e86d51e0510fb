"""Ids of the shared vocabulary and the text tokenizer."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from showo.errors import CheckpointError
from showo.tokens import END_OF_TEXT, SPECIAL_TOKENS, TextTokenizer, Vocabulary


def byte_tokenizer(*added: str) -> Tokenizer:
    """Every byte a token, then the added tokens in the order given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token in added:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return tokenizer


def test_official_ids() -> None:
    vocab = Vocabulary(50295, 8192)
    assert vocab.special_ids() == {
        "[PAD]": 50295,
        "<|soi|>": 50296,
        "<|eoi|>": 50297,
        "<|sov|>": 50298,
        "<|eov|>": 50299,
        "<|t2i|>": 50300,
        "<|mmu|>": 50301,
        "<|t2v|>": 50302,
        "<|v2v|>": 50303,
        "<|lvg|>": 50304,
    }
    by_property = [vocab.pad, vocab.soi, vocab.eoi, vocab.sov, vocab.eov, vocab.t2i, vocab.mmu, vocab.t2v, vocab.v2v]
    assert [*by_property, vocab.lvg] == list(vocab.special_ids().values())
    assert (vocab.image_offset, vocab.image_range, vocab.mask_id, vocab.size) == (50305, (50305, 58497), 58497, 58498)


@pytest.mark.parametrize(("text", "codes", "error"), [(0, 8, ValueError), (8, -1, ValueError), (8.0, 8, TypeError)])
def test_bad_sizes(text: int, codes: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="Vocabulary"):
        Vocabulary(text, codes)


@pytest.mark.parametrize("specials", [(), SPECIAL_TOKENS])
def test_sizes_do_not_count_special_tokens(specials: tuple[str, ...]) -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT, *specials))
    assert (tokenizer.text_vocab_size, tokenizer.bos, tokenizer.eos) == (257, 256, 256)
    assert tokenizer.vocabulary(8).pad == 257


@pytest.mark.parametrize("specials", [SPECIAL_TOKENS[::-1], SPECIAL_TOKENS[:3], (*SPECIAL_TOKENS, "more")])
def test_misplaced_special_tokens_are_refused(specials: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="last ids in the order"):
        TextTokenizer(byte_tokenizer(END_OF_TEXT, *specials))


def test_end_of_text_is_required() -> None:
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>"):
        TextTokenizer(byte_tokenizer())


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_plain_text_round_trip(text: str) -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT, *SPECIAL_TOKENS))
    ids = tokenizer.encode(text)
    assert all(0 <= i < 256 for i in ids)
    assert tokenizer.decode(ids) == text


def test_special_tokens_spelled_in_a_text_stay_text() -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT, *SPECIAL_TOKENS))
    text = "a <|soi|> b <|endoftext|> [PAD]"
    assert max(tokenizer.encode(text)) < 256
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, ""]) == [tokenizer.encode(text), []]


def test_decode_leaves_out_what_is_not_text() -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT, *SPECIAL_TOKENS))
    assert tokenizer.decode([256, *tokenizer.encode("hi"), 256, 257, 9999, -1]) == "hi"


def test_file_round_trip_and_errors(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT, *SPECIAL_TOKENS))
    path = tokenizer.save(tmp_path / "folder")
    assert path == tmp_path / "folder" / "tokenizer.json"
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    for source in (path, path.parent):
        assert TextTokenizer.from_file(source).encode("hello") == tokenizer.encode("hello")
    with pytest.raises(CheckpointError, match="no tokenizer at"):
        TextTokenizer.from_file(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer file"):
        TextTokenizer.from_file(path)


def test_a_hub_id_is_fetched_for_its_tokenizer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    TextTokenizer(byte_tokenizer(END_OF_TEXT)).save(tmp_path)
    asked: list[object] = []

    def download(repo: str, **options: object) -> str:
        asked.append((repo, options["allow_patterns"], options["local_files_only"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    TextTokenizer.from_file("someone/words")
    TextTokenizer.from_file("someone/words", fetch=False)
    assert asked == [("someone/words", ["tokenizer.json"], False), ("someone/words", ["tokenizer.json"], True)]


def test_types_are_checked() -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT))
    with pytest.raises(TypeError, match="must be a str"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sequence of str"):
        tokenizer.encode_batch("text")


def test_a_copy_for_another_process_gives_the_same_ids() -> None:
    tokenizer = TextTokenizer(byte_tokenizer(END_OF_TEXT, *SPECIAL_TOKENS))
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "a <|soi|> that is spelled"
    assert copy.encode(text) == tokenizer.encode(text)
    assert max(copy.encode(text)) < copy.eos == tokenizer.eos
