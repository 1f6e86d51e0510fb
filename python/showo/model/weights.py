"""Saving and loading of models: safetensors + config.json, local folders or hub ids.

Every name and shape of a checkpoint is compared with the model before anything is loaded, files appear whole or not at
all, and pickles (`pytorch_model.bin`, as released) are read with `weights_only=True`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from showo.errors import CheckpointError, ConfigError, MissingCheckpointError, first_line
from showo.files import BUNDLED, atomic_path, atomic_write_text, local_path
from showo.model.building import Building
from showo.model.lora import ADAPTER_CONFIG, adapted_layers, merged_layer, save_adapter_config, save_adapters
from showo.model.weight_files import WEIGHT_SUFFIXES, WEIGHTS_NAME, Reader, has_weights, open_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_NAME = "config.json"
UNWRAPPED = "unwrapped_model"  # the folder of the weights in a checkpoint of the official trainer

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class PretrainedMixin:
    """`save_pretrained` and `from_pretrained` for a module built from one config dataclass.

    The class sets `config_class` (with from_dict and to_dict) and takes the config as its only argument.
    """

    config_class: ClassVar[Any]
    config: Any

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write model.safetensors and config.json into a folder, each atomically; adapters, if there are any, too.

        dtype: floating tensors are stored in it (fp16 and bf16 halve the file); None keeps theirs.
        """
        from safetensors.torch import save_file

        assert isinstance(self, nn.Module)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, tensor in folded_state_dict(self).items():
            if tensor.is_floating_point() and dtype is not None:
                tensor = tensor.to(dtype)
            tensors[name] = tensor.detach().cpu().contiguous()
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        self.save_config(folder)
        save_adapters(self, folder)
        return folder

    def save_config(self, folder: Path) -> None:
        """Write what a folder of weights needs besides: config.json, and that of adapters, if there are any."""
        assert isinstance(self, nn.Module)
        atomic_write_text(folder / CONFIG_NAME, json.dumps(self.config.to_dict(), indent=2) + "\n")
        save_adapter_config(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        config: Any = None,
    ) -> Self:
        """Build the model and load its weights, in evaluation mode.

        source: a folder, or a hub id "owner/name" (downloaded through huggingface_hub; revision as there).
        dtype: floating tensors are converted to it; None keeps what the file holds.
        config: instead of the folder's config.json.
        """
        folder = resolve_folder(source, revision=revision)
        if config is None:
            config = read_config(folder, cls.config_class)
        readers = open_tensors(folder)
        stored = sum(math.prod(shape) for shape, _ in readers.values())
        absurd = CheckpointError(
            f"{folder}: {CONFIG_NAME} describes a model many times as large as its weights, {stored} numbers"
        )
        with Building(2 * stored + 2**24, absurd, fill=False):  # what differs less is named below
            model = cls(config)  # type: ignore[call-arg]
        assert isinstance(model, nn.Module)
        load_weights(model, readers, what=f"{folder}", dtype=dtype, device=device)
        return model.eval()


def folded_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` of the plain model that computes the same: a parametrized tensor
    (torch.nn.utils.parametrize) has its own name and the value that is computed for it, and a layer with an adapter is
    merged with it.
    """
    adapted = {f"{name}.": layer for name, layer in adapted_layers(module)}
    state = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if "parametrizations." not in name and not name.startswith(tuple(adapted))
    }
    for prefix, layer in adapted.items():
        state.update({prefix + name: tensor for name, tensor in merged_layer(layer).items()})
    for prefix, part in module.named_modules():
        if parametrize.is_parametrized(part):
            for name in part.parametrizations:
                state[f"{prefix}.{name}"] = getattr(part, name).detach()
    return state


def is_hub_id(source: str) -> bool:
    """Whether `source` may be a hub id; it may be a relative path as well."""
    return bool(_HUB_ID.fullmatch(source)) and not source.startswith((".", BUNDLED))


def resolve_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    files: Sequence[str] | None = None,
    fetch: bool = True,
) -> Path:
    """The local folder of a checkpoint: one that is here, one of the package ("bundled:..."), or one from the hub.

    A hub id "owner/name" is downloaded first, as far as its `files` go, unless the hub's cache has it; with `fetch`
    False it has to be there. Where no `files` are named, a checkpoint's are meant, with pickles only where there are no
    safetensors: many repositories hold their weights in both. Raises CheckpointError, which tells a missing folder, a
    file, and an id that neither cache nor hub has from each other; MissingCheckpointError for what is nowhere.
    """
    path = Path(local_path(source))
    if os.path.isdir(path):
        if revision is not None:
            raise CheckpointError(f"revision {revision!r}: {path} is a folder here; only the hub's have revisions")
        return _unwrapped(path)
    if os.path.exists(path):
        raise CheckpointError(f"{path} is a file; expected a folder with {CONFIG_NAME} and weights")
    if not isinstance(source, str) or not is_hub_id(source):
        raise MissingCheckpointError(f"no checkpoint folder at {path}")
    if files is not None:
        return _unwrapped(_snapshot(source, revision, files, fetch))
    folder = _unwrapped(_snapshot(source, revision, ("*.json", "*.safetensors"), fetch))
    return folder if has_weights(folder) else _unwrapped(_snapshot(source, revision, ("*.json", "*.bin"), fetch))


def _snapshot(hub_id: str, revision: str | None, files: Sequence[str], fetch: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=list(files), local_files_only=not fetch)
        )
    except Exception as error:  # the hub's many errors: no network, no such repository, no access
        reason = first_line(error)
        hub = f", and cannot be had from the hub: {reason}" if fetch else ""
        raise MissingCheckpointError(f"no folder {hub_id!r} here; as a hub id it is not in the cache{hub}") from error


def _unwrapped(folder: Path) -> Path:
    """Of a checkpoint of the official trainer, the folder in it that holds the model; of any other folder, itself."""
    inside = folder / UNWRAPPED
    return inside if (inside / CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).exists() else folder


def read_config_json(folder: Path) -> Any:
    """What config.json of a checkpoint's folder holds. Raises CheckpointError where there is none, or no JSON."""
    path = folder / CONFIG_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}{_hint(folder)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also no UTF-8, an integer of too many digits, nested too deep
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _hint(folder: Path) -> str:
    """What a folder without config.json seems to be, and what to do about it."""
    # Names end in digits, but for checkpoints that are damaged or half written; a longer number is a later step.
    steps = [*(folder / "checkpoints").glob("step-*[0-9]"), *folder.glob(f"checkpoint-*[0-9]/{UNWRAPPED}")]
    if steps:
        newest = max(steps, key=lambda path: (len(str(path)), str(path)))
        return f"; it is a run, whose newest checkpoint is {newest}"
    if (folder / ADAPTER_CONFIG).is_file():
        return "; it holds adapters alone (LoRA): merge them with the model that they were trained on"
    if (folder / "zero_to_fp32.py").is_file() or any(folder.glob("*/mp_rank_*_model_states.pt")):
        return "; it is DeepSpeed's: make a pytorch_model.bin with its zero_to_fp32.py, and lay config.json beside it"
    if any(path.suffix in WEIGHT_SUFFIXES for path in folder.glob("*")):
        return ", only weights: lay that of the model which they were trained from beside them"
    return ""


def read_config(folder: Path, config_class: Any) -> Any:
    data = read_config_json(folder)
    try:
        return config_class.from_dict(data)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: {error}") from error


def load_weights(
    model: nn.Module,
    readers: Mapping[str, Reader],
    *,
    what: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Load what `open_tensors` found in the folder `what` into `model`, all names, shapes and kinds checked."""
    ours = model.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    check_names_and_shapes(
        expected, {name: shape for name, (shape, _) in readers.items()}, what=what, into=type(model).__name__
    )
    state = {}
    for name in expected:
        tensor = readers[name][1]()
        if tensor.is_floating_point() != ours[name].is_floating_point():
            raise CheckpointError(f"{what}: {name} is {tensor.dtype}, expected a kind of {ours[name].dtype}")
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.to(device=device, dtype=wanted)
    model.load_state_dict(state, strict=True, assign=True)


def check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, what: str, into: str
) -> None:
    """CheckpointError that lists what is missing, unexpected or of another shape (the first few of each)."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit {into}: " + "; ".join(problems))
