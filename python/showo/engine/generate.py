"""Pictures from text: masked tokens are filled over a few steps, the surest first (MaskGIT style).

What comes before the picture never looks at it, so a session reads it once, and once for all rows that begin alike
(with guidance, those of the empty prompt); every step runs only the soi..eoi rows against it, the head only for image
places and image codes. `official=True` computes the same the released way (padded rows, whole sequence and vocabulary
in every step): the yardstick of tests and benchmarks. On CUDA the loop never waits for the device: what
changes from step to step is copied there before the loop, and whether the logits are finite is asked after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from showo.config import ShowoConfig
from showo.engine.composing import Others
from showo.engine.growing import OpenImage
from showo.engine.open_canvas import GenerationStep as GenerationStep
from showo.engine.open_canvas import OpenCanvas
from showo.engine.samplers import find_sampler
from showo.engine.session import Session
from showo.errors import UserError
from showo.model.transformer import Showo
from showo.prompting import Prompting, TextIds


@dataclass(frozen=True)
class Earlier:
    """What came before in rows of texts and pictures in turn: the wanted picture and its text follow.

    texts: of every row, the ids of its texts. image_ids: of every row, vocabulary ids int64 [pictures, N], one picture
    after each text.
    """

    texts: Sequence[Sequence[TextIds]]
    image_ids: Sequence[Tensor]


Callback = Callable[[GenerationStep], None]
# Explicit noise for exact tests: (step) -> uniforms [B, N, codes] for the choice and [B, N] for the confidences.
Noise = Callable[[int], tuple[Tensor, Tensor]]


@torch.inference_mode()
def generate_codes(
    model: Showo,
    prompting: Prompting,
    texts: Sequence[TextIds],
    *,
    earlier: Earlier | Session | None = None,
    negatives: Sequence[TextIds] | None = None,
    also: Sequence[Others] | None = None,
    grid: tuple[int, int] | None = None,
    canvas: Tensor | None = None,
    steps: int = 18,
    guidance: float = 1.75,
    top_k: int = 0,
    schedule: str = "cosine",
    temperature: float = 1.0,
    sampler: str = "confidence",
    guidance_schedule: str = "constant",
    seed: int | Sequence[int] = 0,
    callback: Callback | None = None,
    noise: Noise | None = None,
    official: bool = False,
) -> Tensor:
    """Image codes, int64 [B, N] (0-based), one picture for each text.

    texts: text ids without marks; too long ones are cut as in training.
    earlier: texts and pictures that come before each text; guidance keeps them and empties the last text alone. A
        session's rows hold them already, and stay as they are.
    negatives: ids of a text for each picture, which takes the place of the empty text in the unconditional half (the
        negative prompt of diffusers); None is the empty text.
    also: for each picture further texts with weights, negative ones too, composed with its own text, whose weight is
        1 + guidance: see `showo.engine.composing`. A guidance schedule goes for all of them.
    grid: (height, width) in codes; None is the square of the model's training size.
    canvas: int64 [B, N] vocabulary ids to start from, mask tokens where codes are wanted (None: everywhere).
    guidance: w of (1 + w) * conditional - w * unconditional logits; 0 runs without the second half.
    top_k: each place is drawn from its most probable codes, so many of them; 0 is all codes.
    schedule, sampler, guidance_schedule: see `showo.engine.schedule`, `.samplers` and `.guidance`.
    temperature: of the noise on the confidences, for samplers that have it.
    seed: one number for the batch's first picture, the next ones counting up, or one for each picture (any integers,
        see `showo.seeds`). A picture depends on its own seed and text only, not on its neighbours in the batch.
    """
    find_sampler(sampler)
    start = _canvas(model, len(texts), grid, canvas)
    places = start.shape[1]
    check_options(model.config, places, prompting, steps=steps, guidance=guidance, temperature=temperature)
    if len(texts) == 0:
        return start
    open_canvas = OpenCanvas(
        model,
        texts,
        negatives=negatives,
        also=also,
        canvas=start,
        grid=grid,
        steps=steps,
        guidance=guidance,
        top_k=top_k,
        schedule=schedule,
        temperature=temperature,
        sampler=sampler,
        guidance_schedule=guidance_schedule,
        seed=seed,
    )
    lasts = open_canvas.texts
    compute: OpenImage | _Padded
    if isinstance(earlier, Session):
        if official:
            raise ValueError("official: all of a row is computed in every step; a session does not hold its ids")
        compute = _continued(prompting, earlier, lasts).open_image(places)
    elif official:
        compute = _Padded(model, prompting, _told(earlier, lasts, places), places)
    else:
        compute = read_texts(model, prompting, _told(earlier, lasts, places)).open_image(places)
    while not open_canvas.done:
        step = _advance(open_canvas, compute, noise)
        if callback is not None:
            callback(step)
    return open_canvas.codes()


def _advance(open_canvas: OpenCanvas, compute: OpenImage | _Padded, noise: Noise | None) -> GenerationStep:
    if not open_canvas.needs_logits:
        return open_canvas.advance(None)
    rows, places = open_canvas.rows, open_canvas.places
    own = None if places is None else places.repeat(rows // len(places), 1)
    logits = compute.logits(open_canvas.ids, rows, own)
    return open_canvas.advance(logits, places, () if noise is None else noise(open_canvas.step))


def read_texts(model: Showo, prompting: Prompting, told: Earlier) -> Session:
    """Rows that go on with the wanted pictures; those that begin alike are read once."""
    session = Session(model, len(told.texts))
    session.append(prompting.lvg(told.texts, told.image_ids))
    return session


def check_options(
    config: ShowoConfig, places: int, prompting: Prompting, *, steps: int, guidance: float, temperature: float
) -> None:
    """UserError for options that make no sense, before any work."""
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if not 0 <= guidance < float("inf"):
        raise UserError(f"guidance must be 0 or more, got {guidance}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    length = prompting.max_text_len + 1 + places + 2
    if places < 1 or length > config.max_positions:
        raise UserError(f"a picture of {places} codes needs {length} positions; this model has {config.max_positions}")


def _told(earlier: Earlier | None, lasts: Sequence[TextIds], places: int) -> Earlier:
    """What precedes the wanted pictures, whose texts come last: once, or once more where there are twice as many."""
    if earlier is None:
        return Earlier([[text] for text in lasts], [torch.empty(0, places, dtype=torch.int64)] * len(lasts))
    copies = len(lasts) // len(earlier.texts)
    return Earlier(
        [[*told, text] for told, text in zip([*earlier.texts] * copies, lasts, strict=True)],
        [images.cpu() for images in earlier.image_ids] * copies,
    )


def _continued(prompting: Prompting, session: Session, lasts: Sequence[TextIds]) -> Session:
    """Rows of their own that go on with the wanted pictures' texts: each row once, or twice with guidance."""
    rows = session.taken([*range(session.rows)] * (len(lasts) // session.rows))
    rows.append(prompting.told(lasts, [length == 0 for length in rows.lengths]))
    return rows


class _Padded:
    """Logits as the released code computes them: whole padded rows, all layers and ids, conditional rows first."""

    def __init__(self, model: Showo, prompting: Prompting, told: Earlier, places: int) -> None:
        self.model = model
        blank = torch.full((1, places), prompting.vocabulary.mask_id)
        batch = prompting.lvg(told.texts, [torch.cat((images, blank)) for images in told.image_ids])
        self.batch = batch.to(model.device)
        columns = torch.arange(batch.input_ids.shape[1])
        end = torch.where(batch.input_ids == prompting.vocabulary.pad, 0, columns).amax(1, keepdim=True)  # of its eoi
        self.places = (end - places + torch.arange(places)).to(model.device)
        self.rows = len(end)
        self.row = torch.arange(self.rows, device=model.device)[:, None]

    def logits(self, canvas: Tensor, rows: int, places: Tensor | None = None) -> Tensor:
        """Those of the first rows, of all their places or of those [rows, n]; all are computed."""
        ids = self.batch.input_ids.clone()
        ids[self.row, self.places] = canvas.repeat(len(ids) // len(canvas), 1)
        first, end = self.model.config.vocabulary.image_range
        logits = self.model(ids, mask=self.batch.mask)[self.row, self.places, first:end][:rows]
        return logits if places is None else logits[self.row[:rows], places]


def _canvas(model: Showo, batch: int, grid: tuple[int, int] | None, canvas: Tensor | None) -> Tensor:
    vocab = model.config.vocabulary
    places = grid[0] * grid[1] if grid is not None else model.config.num_vq_tokens
    if grid is not None and min(grid) < 1:
        raise UserError(f"grid must be at least 1x1, got {grid[0]}x{grid[1]}")
    if canvas is None:
        return torch.full((batch, places), vocab.mask_id, dtype=torch.int64, device=model.device)
    if canvas.dim() != 2 or canvas.shape[0] != batch or (grid is not None and canvas.shape[1] != places):
        raise ValueError(f"canvas must be [{batch}, {places}], got {list(canvas.shape)}")
    if canvas.dtype != torch.int64:
        raise TypeError(f"canvas must be int64, got {canvas.dtype}")
    if canvas.numel() and (int(canvas.min()) < vocab.image_offset or int(canvas.max()) > vocab.mask_id):
        raise ValueError(f"canvas must hold ids {vocab.image_offset}..{vocab.mask_id} (codes + offset, or mask tokens)")
    return canvas.to(model.device, copy=True)
