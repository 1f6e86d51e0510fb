"""Text and pictures in, pictures and text out: the models and the two tokenizers behind one object.

pipe = ShowoPipeline.from_pretrained()            # the bundled tiny model
pictures = pipe.generate(["red apple", "soccer ball"], seed=1)
text = pipe.describe([pictures[0]])[0]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from showo.dialogue import SYSTEM_PROMPT, question_text
from showo.engine.assembly import Assembly
from showo.engine.drawing import Drawing, as_pictures, as_texts, check_output, repeated
from showo.engine.generate import Earlier
from showo.engine.options import Asked, Options
from showo.engine.tasks.chat import Chat
from showo.engine.tasks.extend import extend
from showo.engine.tasks.inpaint import Box, inpaint
from showo.engine.tasks.interleave import interleave
from showo.engine.tasks.vary import vary
from showo.engine.understand import MAX_NEW_TOKENS, SeenPictures, answer, check_length, prompt_length, seen_length
from showo.engine.understand import check_options as check_answer_options
from showo.errors import UserError
from showo.model.clip import clip_pixels
from showo.pictures import fit, to_image, to_rgb, to_tensor
from showo.text import clean_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Texts, each with the picture that follows it.
Story = Sequence[tuple[str, Image.Image]]


class ShowoPipeline(Assembly):
    """Every task of a model as one call; `Assembly` says how it is loaded, moved and saved."""

    # ---- pictures ------------------------------------------------------------------------------------------------

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """(height, width) in codes of pictures of size (width, height) pixels; None is the training size."""
        factor = self.image_config.downsampling
        if size is None:
            places = self.config.num_vq_tokens
            side = math.isqrt(places)
            if side * side != places:
                raise UserError(f"the model's {places} codes are no square: give a size")
            return side, side
        width, height = size
        if width < factor or height < factor or width % factor or height % factor:
            raise UserError(f"size {width}x{height}: both sides must be positive multiples of {factor}")
        return height // factor, width // factor

    def pixels(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels of pictures of a grid (height, width) in codes."""
        factor = self.image_config.downsampling
        return grid[1] * factor, grid[0] * factor

    def text_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts, cleaned as captions are; one too long for the model is cut as in training, with a warning."""
        if isinstance(prompts, str):  # a sequence too, of its characters
            raise TypeError(f"prompts must be a sequence of texts, got the text {prompts!r}; write [{prompts!r}]")
        ids = self.text_tokenizer.encode_batch([clean_text(prompt) for prompt in prompts])
        for prompt, row in zip(prompts, ids, strict=True):
            if self.prompting.is_cut(row):
                warnings.warn(f"prompt cut after {self.room} of {len(row)} tokens: {prompt[:60]!r}", stacklevel=3)
        return ids

    @property
    def room(self) -> int:
        """Most text tokens a prompt may have."""
        return self.prompting.max_text_len - 2

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        earlier: Sequence[Story] | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        **options: Unpack[Options],
    ) -> Any:
        """One RGB picture for each prompt, or several; picture i has seed `seed + i`, whatever the batch size.

        earlier: for each prompt, the texts and pictures that came before it; the picture wanted continues them.
        output_type: "pil", a list; "pt", fp32 [B, 3, H, W] and "np", fp32 [B, H, W, 3], of 0 to 1; "codes", int64
            [B, height, width] on the model's device.
        options: see `showo.engine.options.Options`.
        """
        asked = Asked.of(options, self)
        check_output(output_type)
        prompts = as_texts(prompt)
        drawing = Drawing(self, asked, repeated(prompts, num_images_per_prompt), self.grid(asked.size))
        if earlier is None:
            return drawing.output(drawing.draw_all(), output_type)
        if len(earlier) != len(prompts):
            raise UserError(f"{len(earlier)} rows of earlier pictures for {len(prompts)} prompts")
        stories, parts = repeated(earlier, num_images_per_prompt), drawing.parts()
        with drawing.bar(len(parts)):
            drawn = [drawing.draw(part, earlier=self._earlier(stories[part], drawing.grid)) for part in parts]
        return drawing.output(torch.cat(drawn), output_type)

    __call__ = generate

    def inpaint(
        self,
        image: Image.Image | Sequence[Image.Image],
        prompt: str | Sequence[str],
        mask_image: Image.Image | Box,
        *,
        blend: int | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        **options: Unpack[Options],
    ) -> Any:
        """Pictures with the part drawn anew that a mask marks; see `showo.engine.tasks.inpaint` and `generate`.

        One picture goes with all prompts, one prompt with all pictures; the mask is for all.
        """
        asked = Asked.of(options, self)
        return inpaint(self, asked, image, prompt, mask_image, blend, num_images_per_prompt, output_type)

    def extend(
        self,
        image: Image.Image,
        prompt: str | Sequence[str],
        directions: str | Sequence[str],
        *,
        by: int | None = None,
        blend: int | None = None,
        output_type: str = "pil",
        **options: Unpack[Options],
    ) -> Any:
        """A picture drawn on beyond its edges, step by step; see `showo.engine.tasks.extend` and `generate`.

        One prompt for all directions, or one for each. Window i of all steps is drawn with seed `seed + i`.
        """
        return extend(self, Asked.of(options, self), image, prompt, directions, by, blend, output_type)

    def vary(
        self,
        image: Image.Image | Sequence[Image.Image],
        prompt: str | Sequence[str] = "",
        *,
        other: Image.Image | None = None,
        share: float = 0.5,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        **options: Unpack[Options],
    ) -> Any:
        """Pictures like the given ones, or between each and another; see `showo.engine.tasks.vary` and `generate`.

        One picture goes with all prompts, one prompt with all pictures.
        """
        asked = Asked.of(options, self)
        return vary(self, asked, image, prompt, other, share, num_images_per_prompt, output_type)

    def interleave(
        self,
        stories: Sequence[str] | Sequence[Sequence[str]],
        given: Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        *,
        output_type: str = "pil",
        **options: Unpack[Options],
    ) -> list[Any]:
        """Text, picture, text, picture: for each story its pictures, one for each text; see `generate` for options.

        stories: each of texts; or the texts of a single one, whose given pictures are a list of pictures then.

        given: the first pictures of each story, which the others go on from; `showo.engine.tasks.interleave` says more.
        """
        return interleave(self, Asked.of(options, self), stories, given, output_type)

    def _earlier(self, stories: Sequence[Story], grid: tuple[int, int]) -> Earlier:
        shown = [picture for story in stories for _, picture in story]
        ids = self.encode(shown, grid) if shown else torch.empty(0, grid[0] * grid[1], dtype=torch.int64)
        texts = [self.text_ids([text for text, _ in story]) for story in stories]
        return Earlier(texts, ids.split([len(story) for story in stories]))

    @torch.inference_mode()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> list[Image.Image]:
        """RGB pictures of codes [B, N]."""
        return [to_image(image) for image in self.image_tokenizer.decode(codes, *grid)]

    # ---- text ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def describe(
        self,
        images: Image.Image | Sequence[Image.Image],
        questions: Sequence[str | None] | str | None = None,
        *,
        size: tuple[int, int] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch: int = 8,
    ) -> list[str]:
        """Text about each picture: a caption, or the answer to a question (one for all, or one for each).

        Pictures are cropped to the shape of `size` (the training size) around their centre and resized.
        """
        if batch < 1:
            raise UserError(f"batch must be at least 1, got {batch}")
        images = as_pictures(images, "images")
        if questions is None or isinstance(questions, str):
            questions = [questions] * len(images)
        if len(questions) != len(images):
            raise UserError(f"{len(questions)} questions for {len(images)} pictures")
        check_answer_options(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
        asked = self.question_ids(questions)
        look = self._looking(size, asked)
        texts: list[str] = []
        for first in range(0, len(images), batch):
            answers = answer(
                self.model,
                self.prompting,
                look(images[first : first + batch]),
                asked[first : first + batch],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed + first,
            )
            texts += [self.text_tokenizer.decode(ids).strip() for ids in answers]
        return texts

    def chat(
        self,
        images: Image.Image | Sequence[Image.Image] = (),
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> Chat:
        """A talk about pictures, in as many turns as the model has positions for: see `showo.engine.tasks.chat`."""
        return Chat(self, images, size=size, seed=seed)

    def check_questions(self, questions: Sequence[str | None]) -> None:
        """Raises what `describe` raises of these before it sees a picture, of the training size."""
        self._looking(None, self.question_ids(questions))

    def question_ids(self, questions: Sequence[str | None]) -> list[list[int]]:
        """Ids of questions in the model's template; None, which asks for a caption, has none."""
        template = "phi1.5" if self.config.w_clip_vit else "showo"
        return self.text_tokenizer.encode_batch([question_text(question, template) for question in questions])

    def _looking(
        self, size: tuple[int, int] | None, asked: Sequence[Sequence[int]]
    ) -> Callable[[Sequence[Image.Image]], Tensor | SeenPictures]:
        """How pictures become what the model reads. Raises UserError where that cannot be, or is too long."""
        if self.config.w_clip_vit:
            if size is not None:
                raise UserError("size: this model sees all pictures in the size of its vision tower; leave it out")
            system = self.text_tokenizer.encode(SYSTEM_PROMPT)
            for question in asked:
                check_length(self.config, seen_length(self.tower.image_tokens, system, question))
            return lambda images: SeenPictures(self.see(images), system)
        grid = self.grid(size)
        for question in asked:  # before the pictures are encoded, which a size that cannot be may take all memory for
            check_length(self.config, prompt_length(grid[0] * grid[1], self.prompting.frame(question)))
        return lambda images: self.encode(images, grid)

    @torch.inference_mode()
    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [B, P, clip_width] of RGB pictures, cropped to a square and resized."""
        pixels = torch.stack([clip_pixels(to_rgb(image), self.tower.side) for image in images])
        return self.tower(pixels.to(self.model.device)).to(self.model.dtype)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image], grid: tuple[int, int]) -> Tensor:
        """Vocabulary ids [B, N] of RGB pictures, cropped to the grid's shape and resized."""
        tensors = [to_tensor(fit(to_rgb(image), self.pixels(grid))) for image in images]
        batch = torch.stack(tensors).to(self.model.device, self.model.dtype)
        return self.image_tokenizer.encode(batch) + self.config.vocabulary.image_offset
