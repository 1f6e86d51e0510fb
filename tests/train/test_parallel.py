"""Several ranks train as one does: the same samples, losses and weights, whatever their number and their sharing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from showo import cli
from showo.data.streams import STREAMS
from showo.errors import ConfigError
from showo.files import atomic_write_text
from showo.train.checkpoint import checkpoints, step_of
from showo.train.config import to_yaml
from showo.train.ranks import device_of_rank, joined_ranks
from tests.train import rank_jobs
from tests.train.conftest import saved_weights, small_training, train, webdataset
from tests.train.rank_jobs import Job, Seen
from tests.train.test_showo_data import write_sequences
from tests.train.torchrun import torchrun

Folders = dict[str, Path]
STEPS = 20
VIDEOS = ["t2v.batch=2", "v2v.batch=2"]
ALL_FORMATS = ["t2i.batch=4", "lm.batch=2", "mmu.batch=4", "lvg.batch=2", "mmu_vit.batch=2", *VIDEOS]
PLAIN = [
    "precision=fp32", f"steps={STEPS}", "validate_every=20", "checkpoint_every=10", "validation_samples=4",
    "validation_prompts=[]", "optimizer.lr=1e-3", "optimizer.max_grad_norm=1", "workers=0",
    "optimizer.eps=1e-4",  # a gradient that is zero but for rounding moves nothing
]  # fmt: skip
MODEL = ["model.w_clip_vit=true", "model.clip_width=8", "model.max_positions=400", "vision_tower=folder"]


class Trainings:
    """Trainings of all formats, packed, alone and by ranks, in one folder."""

    def __init__(self, folders: Folders, folder: Path) -> None:
        self.folders, self.folder = folders, folder
        pictures = webdataset(folders["pictures"] / "train-*.tar")
        steps = write_sequences(folder / "steps")
        sequences = f"[{{layout: sequences, files: [{steps}]}}]"
        self.data = [f"mmu_vit.data={pictures}", *(f"{name}.data={sequences}" for name in ("lvg", "t2v", "v2v"))]

    def job(self, name: str, *overrides: str, **options: object) -> Job:
        defaults = [*ALL_FORMATS, *PLAIN, *MODEL, *self.data]
        given = {override.partition("=")[0] for override in overrides}
        kept = [each for each in defaults if each.partition("=")[0] not in given]
        path = self.folder / f"{name}.yaml"
        atomic_write_text(path, to_yaml(small_training(self.folders, *kept, *overrides)))
        return Job(name, str(path), str(self.folder / name), **options)  # type: ignore[arg-type]

    def cut(self, name: str, source: str, step: int) -> Path:
        """A run that was ended after `step`."""
        run = shutil.copytree(self.folder / source, self.folder / name)
        for path in checkpoints(run):
            if path.name > f"step-{step:06d}":
                shutil.rmtree(path)
        return run

    def weights(self, name: str, *, average: bool = False) -> dict[str, Tensor]:
        """Of the last checkpoint."""
        return saved_weights(checkpoints(self.folder / name)[-1], average=average)

    def by_ranks(self, count: int, jobs: list[Job]) -> dict[str, list[Seen]]:
        """What every rank has seen of each job."""
        atomic_write_text(self.folder / "jobs.json", json.dumps([asdict(job) for job in jobs]))
        done = torchrun(count, rank_jobs.__file__, str(self.folder))
        assert done.returncode == 0, done.stderr
        return {job.name: [self._seen(f"{job.name}-{rank}") for rank in range(count)] for job in jobs}

    def _seen(self, name: str) -> Seen:
        return Seen(**json.loads((self.folder / f"{name}.json").read_text()))


@pytest.fixture(scope="module")
def trainings(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(folders, tmp_path_factory.mktemp("trainings"))


@pytest.fixture(scope="module")
def alone(trainings: Trainings) -> Seen:
    return rank_jobs.do(trainings.job("alone"))


OPTIONS = [
    "code_bits=true", "ema_decay=0.9", "recompute=full", "frozen=[showo.model.layers.0.mlp.*]",
    "optimizer.max_grad_norm=0", "mmu_vit.batch=0", "steps=4", "validation_prompts=[a red star]",
]  # fmt: skip
HALF = ["precision=bf16", "code_bits=true", "steps=4"]
KINDS = {"ddp": ["parallel=ddp"], "fsdp": ["parallel=fsdp"], "hybrid": ["parallel=fsdp", "fsdp.shards=2"]}


def adapted(trainings: Trainings) -> list[str]:
    """Adapters that learn in compiled blocks, on what one rank has trained."""
    start = checkpoints(trainings.folder / "alone")[-1]
    return ["lora.rank=2", f"init_from={start}", "compile=aot_eager", "recompute=full", "steps=4"]


@pytest.fixture(scope="module")
def two(trainings: Trainings, alone: Seen) -> dict[str, list[Seen]]:
    """Two ranks, in one start of torchrun."""
    jobs = []
    for kind in ("ddp", "fsdp"):
        for accumulate in (1, 2):
            name, overrides = f"{kind}-{accumulate}", [*KINDS[kind], f"accumulate={accumulate}"]
            jobs.append(trainings.job(name, *overrides, counted=3))
        jobs.append(trainings.job(f"{kind}-spoiled", *KINDS[kind], "steps=4", "max_skipped_steps=1", spoiled=[2]))
        jobs.append(trainings.job(f"{kind}-options", *KINDS[kind], *OPTIONS))
        jobs.append(trainings.job(f"{kind}-adapted", *KINDS[kind], *adapted(trainings)))
    jobs.append(trainings.job("bf16", *HALF, "parallel=fsdp", "fsdp.offload=true"))
    jobs.append(trainings.job("few", "t2i.batch=1", *(f"{s}.batch=0" for s in STREAMS if s != "t2i")))
    jobs.append(trainings.job("none", "parallel=none"))
    jobs.append(trainings.job("odd", "parallel=fsdp", "fsdp.shards=3"))
    return trainings.by_ranks(2, jobs)


@pytest.fixture(scope="module")
def four(trainings: Trainings, alone: Seen) -> dict[str, list[Seen]]:
    """Four ranks, which begin, and go on where one rank has ended."""
    jobs = [trainings.job(f"four-{kind}", *overrides, "accumulate=2") for kind, overrides in KINDS.items()]
    trainings.cut("on-hybrid", "alone", 10)
    jobs.append(trainings.job("on-hybrid", *KINDS["hybrid"], resume=True))
    return trainings.by_ranks(4, jobs)


def check_losses(seen: Iterable[Seen], expected: list[float], tolerance: float = 1e-5) -> None:
    for each in seen:
        assert each.error == ""
        torch.testing.assert_close(torch.tensor(each.losses), torch.tensor(expected), rtol=tolerance, atol=0)


def check_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def keys_of_steps(seen: Iterable[Seen]) -> list[dict[str, list[list[int]]]]:
    """The samples of every step, of all ranks together."""
    parts = [each.keys for each in seen]
    return [
        {name: sorted(key for keys in step for key in keys.get(name, [])) for name in STREAMS} for step in zip(*parts)
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_does(
    trainings: Trainings, alone: Seen, two: dict[str, list[Seen]], kind: str, accumulate: int
) -> None:
    name = f"{kind}-{accumulate}"
    check_losses(two[name], alone.losses)
    check_weights(trainings.weights(name), trainings.weights("alone"))
    assert keys_of_steps(two[name]) == keys_of_steps([alone])
    rows = [[sum(map(len, step.values())) for step in each.keys] for each in two[name]]
    assert rows == [[9] * STEPS] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_four_ranks_learn_what_one_does(
    trainings: Trainings, alone: Seen, four: dict[str, list[Seen]], kind: str
) -> None:
    """Some ranks have no row of a stream, and some parts of a micro-batch a row less than others."""
    name = f"four-{kind}"
    check_losses(four[name], alone.losses)
    check_weights(trainings.weights(name), trainings.weights("alone"))
    assert keys_of_steps(four[name]) == keys_of_steps([alone])


def test_four_ranks_go_on_where_one_has_ended(trainings: Trainings, alone: Seen, four: dict[str, list[Seen]]) -> None:
    check_losses(four["on-hybrid"], alone.losses[10:], 1e-6)
    check_weights(trainings.weights("on-hybrid"), trainings.weights("alone"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_rank_goes_on_where_two_have_ended(trainings: Trainings, two: dict[str, list[Seen]], kind: str) -> None:
    trainings.cut(f"one-{kind}", f"{kind}-1", 10)
    one = rank_jobs.do(trainings.job(f"one-{kind}", resume=True))
    check_losses([one], two[f"{kind}-1"][0].losses[10:], 1e-6)
    check_weights(trainings.weights(f"one-{kind}"), trainings.weights(f"{kind}-1"))


@pytest.mark.parametrize(("kind", "operator"), [("ddp", "c10d::allreduce_"), ("fsdp", "c10d::_reduce_scatter_base_")])
def test_gradients_are_added_up_once_a_step(two: dict[str, list[Seen]], kind: str, operator: str) -> None:
    """And one all-reduce gives the figures and the norm of the step."""
    once, twice = (two[f"{kind}-{accumulate}"][0].collectives for accumulate in (1, 2))
    assert once[operator] == twice[operator]
    assert once["c10d::allreduce_"] == {"ddp": 2, "fsdp": 1}[kind]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(
    trainings: Trainings, alone: Seen, two: dict[str, list[Seen]], kind: str
) -> None:
    for seen in two[f"{kind}-spoiled"]:
        assert seen.error == ""
        assert [loss == loss for loss in seen.losses] == [True, True, False, True]
    assert all(bool(weight.isfinite().all()) for weight in trainings.weights(f"{kind}-spoiled").values())


def test_options_mean_the_same_to_ranks(trainings: Trainings, two: dict[str, list[Seen]]) -> None:
    """Shared meanings of bits, an average, frozen parameters, recomputed activations, a projector without rows."""
    one = rank_jobs.do(trainings.job("options", *OPTIONS))
    for kind in ("ddp", "fsdp"):
        check_losses(two[f"{kind}-options"], one.losses)
        for average in (False, True):
            found, expected = (trainings.weights(name, average=average) for name in (f"{kind}-options", "options"))
            check_weights(found, expected)


def test_adapters_in_compiled_blocks_mean_the_same_to_ranks(trainings: Trainings, two: dict[str, list[Seen]]) -> None:
    one = rank_jobs.do(trainings.job("adapted", *adapted(trainings)))
    for kind in ("ddp", "fsdp"):
        check_losses(two[f"{kind}-adapted"], one.losses)
        check_weights(trainings.weights(f"{kind}-adapted"), trainings.weights("adapted"))


def test_half_precision_of_shards_is_near_that_of_autocast(trainings: Trainings, two: dict[str, list[Seen]]) -> None:
    """Weights that are kept are fp32."""
    one = rank_jobs.do(trainings.job("autocast", *HALF))
    check_losses(two["bf16"], one.losses, 1e-2)
    assert two["bf16"][0].losses != one.losses
    assert {weight.dtype for weight in trainings.weights("bf16").values()} == {torch.float32}


def test_what_ranks_cannot_do_is_said(two: dict[str, list[Seen]]) -> None:
    for name, reason in (
        ("few", "a micro-batch has 1 rows for 2 ranks"),
        ("none", "parallel must be ddp or fsdp, as torchrun has started 2 processes, got none"),
        ("odd", "fsdp.shards must divide the number of ranks, 2, got 3"),
    ):
        assert [seen.error.partition("Error: ")[2][: len(reason)] for seen in two[name]] == [reason] * 2


def test_a_failure_carries_the_number_of_its_rank(trainings: Trainings, alone: Seen) -> None:
    """The others lose that rank, which is no bug of theirs."""
    job = trainings.job("again")
    done = torchrun(2, "-m", "showo.train", "--config", job.config, "--run-folder", str(trainings.folder / "alone"))
    assert done.returncode != 0
    assert "showo: rank 0: " in done.stderr
    assert "alone holds a run already; add --resume" in done.stderr
    assert "this is a bug" not in done.stderr


def test_each_rank_has_a_gpu_of_its_own_and_the_other_trainings_have_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device_of_rank("cuda:3") == "cuda:3"
    for name, value in (("RANK", "13"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "5")):
        monkeypatch.setenv(name, value)
    assert (device_of_rank("cpu"), device_of_rank("cuda")) == ("cpu", "cuda:5")
    with pytest.raises(ConfigError, match=r"device must be cuda where there are several ranks, .* got 'cuda:3'"):
        device_of_rank("cuda:3")
    for command in ("train-tokenizer", "train-vision-tower"):
        with pytest.raises(SystemExit):
            cli.main([command])
        said = f"showo: rank 13: showo {command} runs in one process, and torchrun has started 16"
        assert said in capsys.readouterr().err


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes no device without a number there."""
    taken: list[int] = []

    def set_device(device: torch.device) -> None:
        assert device.index is not None
        taken.append(device.index)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    for name in ("cuda", "cuda:1"):
        with joined_ranks(torch.device(name), 60) as ranks:
            assert ranks.count == 1
    assert taken == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("parallel", ["none", "fsdp"])
def test_one_process_trains_on_a_gpu(folders: Folders, tmp_path: Path, parallel: str) -> None:
    config = small_training(folders, "device=cuda", f"parallel={parallel}")
    train(config, tmp_path)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [3, 6]


@pytest.mark.parametrize("wrong", ["parallel=zero", "fsdp.shards=2", "fsdp.offload=true", "fsdp.shards=-1"])
def test_ways_of_sharing_that_make_no_sense_are_refused(folders: Folders, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^(parallel must be|fsdp\.shards must be at least 0)"):
        small_training(folders, wrong)
