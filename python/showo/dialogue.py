"""Questions and answers: the templates that the released models were tuned with, and dialogues as ids.

A template turns a question into the prompt that an answer follows. With `showo`, that of the released models without
CLIP-ViT, pictures are code ids; with `phi1.5`, that of the models with CLIP-ViT, they are features, and `SYSTEM_PROMPT`
stands before them (showlab/Show-o, inference_mmu.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from showo.text import clean_text
from showo.tokens import TextTokenizer

TEMPLATES = {"showo": "USER: \n{} ASSISTANT:", "phi1.5": "USER: {} ASSISTANT:"}

# 28 ids of the released models' text tokenizer.
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Dialogue:
    """A text for a row of understanding, of which the answers are learned and the rest is given.

    turns: the ids of each question in its template, and of its answer without `<|endoftext|>`, which follows every
    answer, and is learned too.
    """

    turns: Sequence[tuple[Sequence[int], Sequence[int]]]


def question_text(question: str | None, template: str = "showo") -> str:
    """The question, cleaned, in a template; no question at all asks for a caption. KeyError for other templates."""
    return "" if question is None else TEMPLATES[template].format(clean_text(question))


def bare_question(text: str) -> str:
    """The question that `question_text` has put into a template."""
    for template in TEMPLATES.values():
        before, after = template.split("{}")
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    return text


def encode_dialogue(turns: Iterable[tuple[str, str]], tokenizer: TextTokenizer, template: str = "showo") -> Dialogue:
    """A dialogue of (question, answer). An answer keeps its lines; only white space around it goes.

    Question and answer become ids one by one, as when the answer is generated; the space between them belongs to the
    answer, as officially.
    """
    return Dialogue(
        [
            (tokenizer.encode(question_text(question, template)), tokenizer.encode(" " + answer.strip()))
            for question, answer in turns
        ]
    )
