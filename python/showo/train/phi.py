"""A Show-o that starts from a Phi language model, as its first stage does from Phi-1.5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from showo.config import ShowoConfig
from showo.errors import CheckpointError
from showo.model.transformer import Showo
from showo.model.weight_files import open_tensors
from showo.model.weights import CONFIG_NAME, check_names_and_shapes, read_config_json, resolve_folder
from showo.train.initial import fresh_model, newest_checkpoint

_PREFIX = "showo."  # of Phi's names in a Show-o
_TABLES = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")  # a row for each id
_QK_NORMS = (".q_layernorm.", ".k_layernorm.")
# Buffers that transformers saved with a Phi before version 4.39; here they are computed.
_COMPUTED = ".rotary_emb.inv_freq"
# Keys of a Phi's config.json that must fit: their value where the file has none, and what a ShowoConfig says.
_FITTING: Mapping[str, tuple[Any, Callable[[ShowoConfig], Any]]] = {
    "hidden_size": (2048, lambda config: config.hidden_size),
    "num_hidden_layers": (24, lambda config: config.num_layers),
    "num_attention_heads": (32, lambda config: config.num_heads),
    "intermediate_size": (8192, lambda config: config.intermediate_size),
    "hidden_act": ("gelu_new", lambda config: "gelu_new"),
    "layer_norm_eps": (1e-5, lambda config: config.layer_norm_eps),
    "partial_rotary_factor": (0.5, lambda config: config.partial_rotary_factor),
    "rope_theta": (10000.0, lambda config: config.rope_theta),
    "rope_type": ("default", lambda config: "default"),
}


def is_phi(source: str) -> bool:
    """Whether `source`, if it is not "", is the folder or hub id of a Phi as transformers saves it.

    Raises CheckpointError where there is no checkpoint.
    """
    if not source:
        return False
    found = read_config_json(resolve_folder(newest_checkpoint(source)))
    return isinstance(found, dict) and found.get("model_type") == "phi"


def showo_from_phi(
    config: ShowoConfig, source: str, seed: int, tell: Callable[[str], object], *, whole: bool = False
) -> Showo:
    """A Show-o with the weights of the Phi `source`; what Phi has not is drawn from `seed`: `tell` gets a line of each.

    All rows of Phi's embeddings and head are taken, as far as there are ids for them: those of the text, and those
    behind, which no text has (Phi-1.5 has 51,200 rows for 50,295 ids), as in the official code. Rows that Phi has not
    begin as normal(0, `initializer_range`) with a bias of zero, and the qk-layernorm as identity weights.

    whole: for a model that learns nothing but adapters, to which a Phi lacks too much.

    Raises CheckpointError for a Phi of other sizes, and for one whose weights do not fit its own config.json.
    """
    if whole:
        raise CheckpointError(
            f"init_from: {source} is a Phi, which has no rows for marks and codes, and adapters do not learn them; "
            "train with lora.rank=0"
        )
    folder = resolve_folder(source)
    phi = _config(folder)
    _check(config, phi, folder)
    model = fresh_model(partial(Showo, config), seed)
    ours = {name.removeprefix(_PREFIX): tensor for name, tensor in model.state_dict().items() if _PREFIX in name}
    if not phi["qk_layernorm"]:
        ours = {name: tensor for name, tensor in ours.items() if not any(norm in name for norm in _QK_NORMS)}
    rows = phi["vocab_size"]
    readers = {name: reader for name, reader in open_tensors(folder).items() if not name.endswith(_COMPUTED)}
    expected = {n: (rows, *tensor.shape[1:]) if n in _TABLES else tuple(tensor.shape) for n, tensor in ours.items()}
    check_names_and_shapes(
        expected, {name: shape for name, (shape, _) in readers.items()}, what=f"init_from: {folder}", into="a Phi"
    )
    for name, into in ours.items():
        tensor = readers[name][1]()
        if not tensor.is_floating_point():
            raise CheckpointError(f"init_from: {folder}: {name} is {tensor.dtype}, expected floating numbers")
        taken = min(len(tensor), len(into))
        into[:taken].copy_(tensor[:taken])
    for line in _new(config, phi):
        tell(f"init_from: {source}: {line}")
    return model


def _config(folder: Path) -> dict[str, Any]:
    """The keys of a Phi's config.json that matter here; the rotary ones may lie in a block of their own."""
    found = read_config_json(folder)
    found = {**found, **(found.get("rope_scaling") or {}), **(found.get("rope_parameters") or {})}
    defaults = {key: default for key, (default, _) in _FITTING.items()}
    more = {"vocab_size": 51200, "num_key_value_heads": None, "max_position_embeddings": 2048, "qk_layernorm": False}
    return {key: found.get(key, default) for key, default in {**defaults, **more}.items()}


def _check(config: ShowoConfig, phi: Mapping[str, Any], folder: Path) -> None:
    wrong = [f"{key} is {phi[key]}, not {of(config)}" for key, (_, of) in _FITTING.items() if phi[key] != of(config)]
    if phi["num_key_value_heads"] not in (None, config.num_heads):
        wrong.append(f"num_key_value_heads is {phi['num_key_value_heads']}, not {config.num_heads}")
    if type(phi["vocab_size"]) is not int or phi["vocab_size"] < config.text_vocab_size:
        wrong.append(f"vocab_size is {phi['vocab_size']}, less than text_vocab_size {config.text_vocab_size}")
    if phi["qk_layernorm"] and not config.qk_layernorm:
        wrong.append("qk_layernorm is True, not False")
    if wrong:
        raise CheckpointError(f"init_from: {folder / CONFIG_NAME} has another model configuration: {', '.join(wrong)}")


def _new(config: ShowoConfig, phi: Mapping[str, Any]) -> Iterator[str]:
    """What a Show-o has and the Phi has not, a line each."""
    rows, positions = phi["vocab_size"], phi["max_position_embeddings"]
    if rows < config.vocab_size:
        yield (
            f"{config.vocab_size - rows} rows of embeddings and head, {rows} to {config.vocab_size - 1}, are new, and "
            "start as drawn from the seed"
        )
    if (unused := min(rows, config.vocab_size) - config.text_vocab_size) > 0:
        yield f"{unused} rows of marks and codes, from {config.text_vocab_size} on, are Phi's, without a text"
    if config.qk_layernorm and not phi["qk_layernorm"]:
        yield "qk_layernorm is new, with weights 1 and biases 0"
    if config.w_clip_vit:
        yield "mm_projector is new, and starts as drawn from the seed"
    if config.max_positions > positions:
        yield f"max_positions {positions} -> {config.max_positions}: from {positions} on Phi knows none"
