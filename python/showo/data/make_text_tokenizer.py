"""Train the bundled text tokenizer.

Byte-level BPE on the captions and the text, special tokens last, in the official order.

    python -m showo.data.make_text_tokenizer python/showo/assets/tiny/showo

Captions are few beside the text, so each counts CAPTION_WEIGHT times. The same data gives the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from showo.data.shards import read_pairs, read_texts
from showo.dialogue import question_text
from showo.tokens import END_OF_TEXT, SPECIAL_TOKENS, TextTokenizer

CAPTION_WEIGHT = 40
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    captions = [sample.caption for sample in read_pairs(["bundled:emoji/train-*.tar"])]
    tokenizer = train_text_tokenizer(captions, read_texts(["bundled:text/train-*.tar"]))
    print(f"{tokenizer.text_vocab_size} text ids -> {tokenizer.save(arguments.folder)}")


if __name__ == "__main__":
    main()
