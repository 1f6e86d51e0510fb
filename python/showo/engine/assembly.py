"""The models and the two tokenizers that make a pipeline: loading, moving and saving them together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from showo.config import ShowoConfig
from showo.devices import find_device
from showo.engine.growing import compiled_steps
from showo.engine.loading import IMAGE_TOKENIZER_FOLDER, SHOWO_FOLDER, VISION_TOWER_FOLDER, Parts, find_parts
from showo.engine.pipeline_file import PipelineFile
from showo.engine.sampling import Sampling
from showo.errors import CheckpointError, UserError
from showo.files import new_folder
from showo.model.clip import ClipTower
from showo.model.graphs import Graphs
from showo.model.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from showo.model.quantize import check_quantization, quantize
from showo.model.transformer import Showo
from showo.model.weights import read_config
from showo.prompting import Prompting
from showo.tokens import TextTokenizer

if TYPE_CHECKING:
    from typing_extensions import Self


class Assembly:
    """A transformer, an image tokenizer and a text tokenizer that fit each other.

    config, image_config: of the models, also where their weights have not been read.
    sampling: how the model draws where `generate` is not told otherwise.
    vision_tower: what a model with CLIP-ViT sees pictures with, as a folder or hub id; opened when one is described.
    """

    _weights: _Weights  # of what `from_pretrained` has made

    def __init__(
        self,
        model: Showo,
        image_tokenizer: ImageTokenizer,
        text_tokenizer: TextTokenizer,
        sampling: Sampling | None = None,
        vision_tower: str | Path | None = None,
    ) -> None:
        self._describe(model.config, image_tokenizer.config, text_tokenizer, sampling or Sampling(), vision_tower)
        self.model = model
        self.image_tokenizer = image_tokenizer

    def _describe(
        self,
        config: ShowoConfig,
        image_config: ImageTokenizerConfig,
        text_tokenizer: TextTokenizer,
        sampling: Sampling,
        vision_tower: str | Path | None,
    ) -> None:
        """All that can be said of a call before there are weights."""
        if text_tokenizer.text_vocab_size != config.text_vocab_size:
            raise CheckpointError(
                f"the text tokenizer has {text_tokenizer.text_vocab_size} ids, the model {config.text_vocab_size}"
            )
        if image_config.codebook_size != config.codebook_size:
            raise CheckpointError(
                f"the image tokenizer has {image_config.codebook_size} codes, the model {config.codebook_size}"
            )
        self.config = config
        self.image_config = image_config
        self.text_tokenizer = text_tokenizer
        self.sampling = sampling
        self.vision_tower = vision_tower
        self.prompting = Prompting.for_model(config, eot=text_tokenizer.eos)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        image_tokenizer: str | Path | None = None,
        text_tokenizer: str | Path | None = None,
        vision_tower: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        quantization: str | None = None,
        cuda_graphs: bool = False,
        compile: bool = False,
        deferred: bool = False,
    ) -> Self:
        """Load a folder with showo/ and image_tokenizer/, or a transformer's own folder, such as a training checkpoint.

        source: folder, hub id or "bundled:..."; None is the bundled model.
        image_tokenizer: likewise; None takes the folder beside showo/, or the one that the transformer's folder names;
            for released models showlab/magvitv2.
        text_tokenizer: folder, hub id, or file of tokenizer.json; None looks beside the transformer's weights; for
            released models microsoft/phi-1_5.
        vision_tower: folder or hub id; None takes the one that the transformer's folder names; for released models
            openai/clip-vit-large-patch14-336.
        revision: of `source`, where that is a hub id: a branch, a tag or a commit.
        dtype: of both models' weights; None keeps those of the files.
        quantization: "int8" gives the transformer int8 weights (`showo.model.quantize`); it cannot be saved then.
        cuda_graphs: on a GPU, steps of drawing and of decoding text run as CUDA graphs (`showo.model.graphs`).
        compile: steps of drawing and of decoding text, and the image tokenizer, run as torch.compile makes them. That
            takes a minute or more when each is first wanted, and a compiler where the device is the CPU.
        deferred: weights are read when the first of them is needed, and all that a call is asked for is checked before.

        Parts of released models are looked for beside the transformer's folder first, under the names of the hub.

        Raises:
            CheckpointError: a part is missing, damaged or does not fit; the message says which.
            UserError: another quantization, or one that needs torchao (on a GPU), which is not installed; CUDA graphs
                without a GPU.
        """
        device = find_device(device)
        if quantization is not None:
            check_quantization(quantization, device)
        if cuda_graphs and device.type != "cuda":
            raise UserError(f"cuda_graphs: the device is {device}; CUDA graphs need a GPU (device='cuda')")
        parts = find_parts(
            source,
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            vision_tower=vision_tower,
            revision=revision,
        )
        pipe = cls.__new__(cls)
        image_config = read_config(parts.image_tokenizer, ImageTokenizerConfig)
        pipe._describe(parts.config, image_config, parts.text_tokenizer, parts.sampling, parts.vision_tower)
        pipe._weights = _Weights(parts, image_config, dtype, device, quantization, cuda_graphs, compile)
        if not deferred:
            _ = pipe.image_tokenizer, pipe.model
        return pipe

    @cached_property
    def model(self) -> Showo:
        """The transformer; read now, where that was deferred."""
        return self._weights.transformer()

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """Likewise."""
        return self._weights.image_tokenizer()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the models, and convert the weights that `from_pretrained` converts; returns the pipeline itself.

        The vision tower keeps its dtype.
        """
        place = self.model.device if device is None else find_device(device)
        self.model.to(place, dtype)
        self.image_tokenizer.to(place, dtype)
        if "tower" in self.__dict__:  # else it is not opened yet
            self.tower.to(place)
        return self

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a folder that `from_pretrained` loads, with all parts in it: the vision tower too, where one is named.

        Raises:
            OutputError: there is something at `folder`, or it cannot be written.
        """
        folder = Path(folder)
        with new_folder(folder) as whole:
            self.model.save_pretrained(whole / SHOWO_FOLDER)
            self.text_tokenizer.save(whole / SHOWO_FOLDER)
            PipelineFile(sampling=self.sampling).write(whole / SHOWO_FOLDER)
            self.image_tokenizer.save_pretrained(whole / IMAGE_TOKENIZER_FOLDER)
            if self.vision_tower is not None:
                self.tower.save_pretrained(whole / VISION_TOWER_FOLDER)
        return folder

    @cached_property
    def tower(self) -> ClipTower:
        """The vision tower. Raises CheckpointError where none is named, or it is not there or of another width."""
        if self.vision_tower is None:
            raise CheckpointError(
                "this model sees pictures with a vision tower, and its folder does not name one; name it (vision_tower)"
            )
        try:
            tower = ClipTower.from_pretrained(self.vision_tower).to(self.model.device)
        except CheckpointError as error:
            raise CheckpointError(f"vision_tower: {error}; name another (vision_tower)") from error
        if tower.width != self.config.clip_width:
            raise CheckpointError(
                f"vision_tower: {self.vision_tower} gives features of {tower.width} numbers, the model takes "
                f"{self.config.clip_width}"
            )
        return tower


@dataclass(frozen=True)
class _Weights:
    """Where the weights of a pipeline lie, and what is made of them."""

    parts: Parts
    image_config: ImageTokenizerConfig
    dtype: torch.dtype | None
    device: torch.device
    quantization: str | None
    cuda_graphs: bool
    compile: bool

    def transformer(self) -> Showo:
        model = Showo.from_pretrained(self.parts.folder, config=self.parts.config, dtype=self.dtype, device=self.device)
        if self.quantization is not None:
            quantize(model, self.quantization)
        if self.compile:
            model.compiled = compiled_steps()
        if self.cuda_graphs:
            model.graphs = Graphs(model)
        return model

    def image_tokenizer(self) -> ImageTokenizer:
        tokenizer = ImageTokenizer.from_pretrained(
            self.parts.image_tokenizer, config=self.image_config, dtype=self.dtype, device=self.device
        )
        if self.compile:
            tokenizer.encoder.compile()
            tokenizer.decoder.compile()
        return tokenizer
