"""The command `showo plan`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from showo.commands import common
from showo.commands.output import say
from showo.commands.train import Overrides
from showo.errors import UserError
from showo.gpus import GPUS

if TYPE_CHECKING:
    from showo.train.dry_run import DryRun
    from showo.train.plan.whole import Cluster, Plan


def plan(
    overrides: Overrides = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", help="YAML file or bundled name; several make a table.", show_default="stage1"),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help=f"{', '.join(GPUS)}.")] = "a100-80",
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=1_000_000, help="How many share a step.")] = 1,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="Machines that they are in.", show_default="8 GPUs each")
    ] = None,
    parallel: Annotated[
        list[str] | None,
        typer.Option("--parallel", help="ddp, fsdp or hybrid, as often as wanted.", show_default="all that differ"),
    ] = None,
    nvlink: Annotated[
        float | None,
        typer.Option("--nvlink", help="GB/s that a GPU sends within its machine.", show_default="the GPU's"),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option("--network", help="GB/s that a machine sends to others.", show_default="the usual machine's"),
    ] = None,
    storage: Annotated[float, typer.Option("--storage", help="GB/s that all machines together write.")] = 2.0,
    failures: Annotated[
        float | None,
        typer.Option("--failures", help="Hours between failures of one GPU.", show_default="50,676, as of Llama 3"),
    ] = None,
    restart: Annotated[float, typer.Option("--restart", help="Seconds from a failure to the next step.")] = 300.0,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of their peak that GPUs reach.", show_default="predicted")
    ] = None,
    threads: common.Threads = None,
) -> None:
    """Plan a training of Show-o: memory, time, data, checkpoints. Data, weights and GPUs need not be there."""
    if gpu not in GPUS:
        raise UserError(f"--gpu must be one of {', '.join(GPUS)}, got {gpu!r}")
    speeds = {"nvlink": nvlink, "network": network, "storage": storage, "failures": failures, "restart": restart}
    for name, value in speeds.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name} must be above 0, got {value}")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu must be above 0 and at most 1, got {mfu}")

    from showo.train.config import ShowoTraining, load_config
    from showo.train.dry_run import DryRun
    from showo.train.plan.network import Links
    from showo.train.plan.report import report, stages
    from showo.train.plan.running import HOURS_OF_GPU
    from showo.train.plan.sharing import nodes_of
    from showo.train.plan.whole import Cluster

    links = Links.of(GPUS[gpu], *(None if speed is None else 1e9 * speed for speed in (nvlink, network)))
    cluster = Cluster(gpu, gpus, nodes or nodes_of(gpus), links, 1e9 * storage, failures or HOURS_OF_GPU, restart)
    names = config or ["stage1"]
    configs = [load_config(ShowoTraining, name, overrides or []) for name in names]
    kinds = _sharings(parallel, cluster, several=len(names) > 1, offload=any(each.fsdp.offload for each in configs))
    common.begin(threads)
    runs = [DryRun(each) for each in configs]
    plans = [_plan(run, cluster, kind, mfu) for run in runs for kind in kinds]
    if len(names) > 1:
        say(stages(list(zip(names, plans, strict=True))))
    else:
        say("\n\n".join(report(plans)))


def _sharings(given: list[str] | None, cluster: Cluster, *, several: bool, offload: bool) -> list[str]:
    """The ways to share that were asked for, or those that differ on these GPUs. several: trainings, of which each has
    one way: ddp, if nothing is asked for. offload: weights wait in the memory of the CPU, which ddp cannot do.
    """
    from showo.train.plan.sharing import SHARINGS

    wrong = [kind for kind in given or () if kind not in SHARINGS]
    if wrong:
        raise UserError(f"--parallel must be one of {', '.join(SHARINGS)}, got {wrong[0]!r}")
    if several and len(given or ()) > 1:
        raise UserError(f"--parallel must be given once where there are several --config, got {' '.join(given or ())}")
    differing = 1 if several or cluster.gpus == 1 else 2 if cluster.nodes == 1 else 3
    return given or list(SHARINGS[1 : max(2, differing)] if offload else SHARINGS[:differing])


def _plan(run: DryRun, cluster: Cluster, kind: str, mfu: float | None) -> Plan:
    from showo.train.plan.sharing import Sharing
    from showo.train.plan.whole import Plan

    return Plan(run, cluster, Sharing(kind, cluster.gpus, cluster.nodes, run.config.fsdp.offload), mfu or 0.0)
