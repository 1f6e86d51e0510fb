"""Training configuration: YAML and overrides, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from showo.data.sources.config import SourceConfig
from showo.errors import ConfigError
from showo.train.config import (
    LoopConfig,
    OptimizerConfig,
    ShowoTraining,
    Stream,
    TokenizerTraining,
    load_config,
    to_yaml,
)


def test_bundled_configurations_load() -> None:
    assert load_config(ShowoTraining, "tiny").model.num_vq_tokens == 64
    assert load_config(TokenizerTraining, "tiny-image-tokenizer").model.bits == 13


def test_overrides_reach_nested_fields() -> None:
    config = load_config(ShowoTraining, "tiny", ["optimizer.lr=3e-4", "t2i.batch=2", "model.num_layers=1"])
    assert (config.optimizer.lr, config.t2i.batch, config.model.num_layers) == (3e-4, 2, 1)


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("[d/x-{0000..0009}.tar]", ["d/x-{0000..0009}.tar"]),
        ("[bundled:x-{0..1}/{00..11}.tar, b.tar]", ["bundled:x-{0..1}/{00..11}.tar", "b.tar"]),
        ("[\"d/x y-{0..9}.tar\",'z-{0..9}.tar']", ["d/x y-{0..9}.tar", "z-{0..9}.tar"]),
    ],
)
def test_ranges_of_shards_are_overrides_too(value: str, patterns: list[str]) -> None:
    (source,) = load_config(ShowoTraining, "tiny", [f"lm.data=[{{layout: tar_text, files: {value}}}]"]).lm.data
    assert source.files == patterns


def test_a_list_given_twice_is_an_error() -> None:
    """As when a shell makes two words of texts=[{a,b}]."""
    with pytest.raises(ValueError, match="questions is given 2 times"):
        load_config(ShowoTraining, "tiny", ["questions=[a]", "questions=[b]"])
    assert load_config(ShowoTraining, "tiny", ["steps=1", "steps=2"]).steps == 2


def test_a_key_without_a_value_is_the_empty_text() -> None:
    assert load_config(ShowoTraining, "tiny", ["init_from=runs/other", "init_from="]).init_from == ""
    assert load_config(ShowoTraining, "tiny", ["init_from=''"]).init_from == ""


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config(ShowoTraining, "tiny", ["steps=7"])
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(ShowoTraining, str(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("optimizer.learning_rate=1", "learning_rate"),
        ("step=1", "step"),
        ("steps=many", "steps"),
        ("model.hidden_size=a", "hidden_size"),
        ("precision=fp8", "precision must be fp32 or bf16, got 'fp8'"),
        ("init_from='???'", r"init_from must have a value, got \?\?\?"),
        ("steps=", r"steps=: .*steps: Value '' "),
        ("optimizer.lr=???", r"optimizer\.lr must have a value, got \?\?\?"),
        ("lm.data=[]", r"lm\.data must be at least one source, got \[\]"),
        ("t2i.data=[{layout: webdataset, files: []}]", r"t2i\.data\[0\]\.files must be at least one file, got \[\]"),
        ("t2i.held_out=[{layout: webdataset}]", r"t2i\.held_out\[0\]\.files must be at least one file, got \[\]"),
        ("t2i.data=[{files: [a]}]", r"t2i\.data\[0\]\.layout"),
        ("t2i.data=[{layout: webdataset, file: [a]}]", r"file"),
        ("t2i.data=[{layout: webdataset, files: [[a]]}]", r"t2i\.data\[0\]\.files must be a list of texts"),
        ("t2i.data=[{layout: webdataset, files: [a], weight: 0}]", r"t2i\.data\[0\]\.weight must be above 0"),
        (
            "mmu.held_out=[{layout: webdataset, files: [x, bundled:emoji/train-*.tar]}]",
            r"mmu\.held_out\[0\]\.files must be other files than those of data, got bundled:emoji/train-\*\.tar",
        ),
        ("accumulate=2", r"lm\.batch must be a multiple of accumulate, 2, got 1"),
        ("wandb=project", r"wandb is not installed"),
        ("questions=[]", r"questions must be at least one where question_share is 0\.3, got \[\]"),
    ],
)
def test_unknown_keys_and_wrong_values_are_errors(override: str, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        load_config(ShowoTraining, "tiny", [override])


COUNTS = ["steps", "accumulate", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "resolution"]
COUNTS += ["validation_samples", "prefetch"]
NOT_NEGATIVE = ["max_seconds", "workers", "max_skipped_steps", "encode_first"]
NOT_NEGATIVE += [f"optimizer.{name}" for name in ("lr", "warmup_steps", "weight_decay", "max_grad_norm")]
NOT_NEGATIVE += [f"{stream}.{name}" for stream in ("t2i", "lm", "mmu") for name in ("batch", "weight")]
SHARES = ("broken_share", "condition_dropout", "question_share", "optimizer.final_lr_ratio")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *((key, "0", "at least 1") for key in COUNTS),
        *((key, "-1", "at least 0") for key in NOT_NEGATIVE),
        *((key, value, "at least 0 and at most 1") for key in SHARES for value in ("2", "-0.1", "nan")),
        *(("optimizer.lr", value, "at least 0 and finite") for value in ("nan", "inf")),
        *(("optimizer.betas", value, "at least 0 and below 1") for value in ("[0.9, 1.0]", "[-0.1, 0.9]")),
        ("optimizer.eps", "0", "above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} must be {expected}.*, got .*\d|nan|inf"):
        load_config(ShowoTraining, "tiny", [f"{key}={value}"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("augment", "5"), ("batch", "0"), ("l1_weight", "-1"), ("gradient_weight", "-1"), ("quantizer_weight", "-1"),
     ("entropy_weight", "-1"), ("resolution", "60"), ("data", "[]")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_the_other_trainer(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} must be .*, got {re.escape(value)}"):
        load_config(TokenizerTraining, "tiny-image-tokenizer", [f"{key}={value}"])


@pytest.mark.parametrize(("kind", "name"), [(TokenizerTraining, "tiny-image-tokenizer"), (ShowoTraining, "tiny")])
def test_a_step_s_rows_must_make_equal_micro_batches(kind: type[LoopConfig], name: str) -> None:
    with pytest.raises(ConfigError, match=r"batch must be a multiple of accumulate, 3, got 16"):
        load_config(kind, name, ["accumulate=3"])


def test_every_number_of_a_configuration_has_its_interval() -> None:
    kinds = (OptimizerConfig, LoopConfig, SourceConfig, Stream, TokenizerTraining, ShowoTraining)
    numbers = [
        f for kind in kinds for f in dataclasses.fields(kind) if f.type in ("int", "float", "tuple[float, float]")
    ]
    assert len(numbers) > 20
    assert {field.name for field in numbers if not field.metadata} == {"seed"}


def test_ends_of_ranges_are_taken() -> None:
    ends = ["condition_dropout=1", "question_share=1", "optimizer.betas=[0,0]", "optimizer.lr=0", "seed=-1", "steps=1"]
    load_config(ShowoTraining, "tiny", ends)
    load_config(ShowoTraining, "tiny", ["condition_dropout=0", "question_share=0", "questions=[]"])


def test_only_what_is_read_must_be_there() -> None:
    load_config(ShowoTraining, "tiny", ["lm.batch=0", "lm.data=[]", "t2i.held_out=[]"])
    load_config(ShowoTraining, "tiny", ["t2i.batch=0", "mmu.batch=0", "t2i.data=[]", "mmu.data=[]"])
    with pytest.raises(ConfigError, match=r"one of t2i\.batch, lm\.batch, .* must be at least 1"):
        load_config(ShowoTraining, "tiny", ["t2i.batch=0", "lm.batch=0", "mmu.batch=0"])


def test_a_file_without_a_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("steps: 3\noptimizer:\n  lr: ???\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: optimizer\.lr must have a value"):
        load_config(ShowoTraining, str(tmp_path / "c.yaml"))


def test_missing_file_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="tiny-image-tokenizer"):
        load_config(ShowoTraining, "nope")
