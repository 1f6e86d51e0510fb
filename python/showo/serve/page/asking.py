"""The tab that talks about a picture."""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator

import gradio as gr
from PIL import Image

from showo.engine.batching import Answer, AnswerDone, EngineError, Piece
from showo.errors import UserError
from showo.serve.page.tabs import HEIGHT, Built, Maker, Taker, needed
from showo.serve.page.uploads import on_upload, picture_box, refusal

# Questions with their answers; None asked for a caption.
Turns = list[tuple[str | None, str]]
Said = tuple[list[dict[str, str]], Turns, str]  # what the chat shows, what it has been, and what is left to ask


def ask_tab(make: Maker) -> Built:
    with gr.Row():
        with gr.Column(scale=2):
            picture = picture_box(label="Picture", height=HEIGHT, elem_id="ask-picture")
        with gr.Column(scale=3):
            chat = gr.Chatbot(render_markdown=False, buttons=[], height=HEIGHT, label="Chat", elem_id="ask-chat")
            question = gr.Textbox(placeholder="what colour is the star?", show_label=False, elem_id="ask-question")
            with gr.Row():
                go = gr.Button("Ask", variant="primary", elem_id="ask-go")
                describe, stop = gr.Button("Describe", elem_id="ask-describe"), gr.Button("Stop", elem_id="ask-stop")
    turns = gr.State([])

    async def asked(picture: Image.Image | None, question: str, turns: Turns) -> AsyncIterator[Said]:
        async for said in _answered(make, picture, question, turns):
            yield said

    async def described(picture: Image.Image | None) -> AsyncIterator[Said]:
        async for said in _answered(make, picture, None, []):
            yield said

    shown = [chat, turns, question]
    running = [
        gr.on([go.click, question.submit], asked, [picture, question, turns], shown, trigger_mode="once"),
        describe.click(described, picture, shown, trigger_mode="once"),
    ]
    stop.click(None, cancels=running)
    on_upload(picture, lambda given: (make.fitted(given), [], []), [picture, chat, turns])
    picture.clear(lambda: ([], []), None, [chat, turns])
    chat.clear(list, None, turns)
    return Built(taker=Taker("ask", [picture, chat, turns], lambda given: [given, [], []]))


async def _answered(
    make: Maker, picture: Image.Image | None, question: str | None, turns: Turns
) -> AsyncIterator[Said]:
    """The chat as an answer grows. Until it is whole it is no turn: after a stop, the question can be asked anew."""
    answer = ""
    try:
        request = Answer([needed(picture)], question, earlier=turns)
        async for event in await asyncio.to_thread(make.engine.submit, request):
            if isinstance(event, Piece):
                answer += event.text
                yield _messages([*turns, (question, answer)]), turns, question or ""
            elif isinstance(event, AnswerDone):
                if not event.finished:
                    gr.Info("The answer was cut: it became too long.")
                turns = [*turns, (question, event.text)]
                yield _messages(turns), turns, ""
    except (UserError, EngineError, TypeError) as error:
        raise refusal(error) from error


def _messages(turns: Turns) -> list[dict[str, str]]:
    """What the chat shows. Gradio takes texts for HTML, also where it takes them for no Markdown: they are escaped."""
    messages = []
    for question, answer in turns:
        asked = "Describe the picture." if question is None else question
        messages.append({"role": "user", "content": html.escape(asked)})
        messages.append({"role": "assistant", "content": html.escape(answer)})
    return messages
