"""Train the bundled text tokenizer.

Byte-level BPE on the captions and the text, special tokens last, in the official order.

    python -m showo.data.make_text_tokenizer python/showo/assets/tiny/showo [--world runs/world]

Captions are few beside the text, so each counts CAPTION_WEIGHT times; with a world, so do WORLD_SAMPLES of its
captions, dialogues and instructions, whose words then are single tokens. The same data gives the same file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from showo.data.sample import CaptionedPicture, Conversation, PictureSequence
from showo.data.sources import open_source, read_documents, read_pictures
from showo.data.sources.config import SourceConfig
from showo.dialogue import question_text
from showo.tokens import END_OF_TEXT, SPECIAL_TOKENS, TextTokenizer

CAPTION_WEIGHT = 40
WORLD_SAMPLES = 4000  # of each kind; the words of a world are few
TEXT_VOCAB_SIZE = 1536  # END_OF_TEXT included, the ten special tokens not
QUESTIONS = ("What is this?", "What does the picture show?", "Describe the picture.")  # as in configs/tiny.yaml


def train_text_tokenizer(captions: list[str], texts: list[str], vocab_size: int = TEXT_VOCAB_SIZE) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(
        [*(captions + [question_text(q) for q in QUESTIONS] * 10) * CAPTION_WEIGHT, *texts], trainer
    )
    for token in (END_OF_TEXT, *SPECIAL_TOKENS):
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return TextTokenizer(tokenizer)


def world_texts(world: Path) -> Iterator[str]:
    """Captions, dialogues in the official template, and instructions of the training part of a world."""
    for layout, files in (
        ("webdataset", f"{world}/scenes/train-*.tar"),
        ("llava", f"{world}/questions/train.json"),
        ("sequences", f"{world}/steps/train.jsonl"),
    ):
        source = open_source(SourceConfig(layout, [files]))
        for sample in map(source.__getitem__, range(min(WORLD_SAMPLES, len(source)))):
            match sample:
                case CaptionedPicture():
                    yield from sample.captions
                case Conversation():
                    yield from (f"{question_text(turn.question)} {turn.answer}" for turn in sample.turns)
                case PictureSequence():
                    yield from (frame.caption for frame in sample.frames)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--world", type=Path, help="folder of a world, whose words are learned too")
    arguments = parser.parse_args(argv)
    captions = [sample.caption for sample in read_pictures("bundled:emoji/train-*.tar")]
    if arguments.world is not None:
        captions += world_texts(arguments.world)
    texts = [document.text for document in read_documents("bundled:text/train-*.tar")]
    tokenizer = train_text_tokenizer(captions, texts)
    print(f"{tokenizer.text_vocab_size} text ids -> {tokenizer.save(arguments.folder)}")


if __name__ == "__main__":
    main()
