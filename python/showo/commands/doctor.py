"""showo doctor: what this installation is and can do."""

from __future__ import annotations

import typer

from showo.commands import common


def doctor(threads: common.Threads = None) -> None:
    """Print versions, CPU features, CUDA architectures, devices, and which backend each operator uses."""
    common.set_threads(threads)

    import platform

    import torch
    from rich.console import Console
    from rich.table import Table

    from showo_ext import build_info

    info = build_info()
    console = Console(width=None if Console().is_terminal else 120)
    facts = Table(show_header=False, box=None)
    rows = [
        ("showo_ext", info["version"]),
        ("python", f"{info['python']} on {platform.platform()}"),
        ("torch", f"{info['torch']}, {torch.get_num_threads()} threads"),
        ("native module", "loaded" if info["native"] else f"missing: {info['native_error']}"),
        ("CPU", f"{info.get('cpu_isa', 'unknown')} in use, best here {info.get('cpu_isa_best', 'unknown')}"),
        ("compiler", f"{info.get('compiler', 'unknown')}, {info.get('build_type', 'unknown')}"),
        (
            "CUDA kernels",
            f"for {', '.join(info['cuda_archs'])} (CUDA {info['cuda_version']})" if info["has_cuda"] else "not built",
        ),
        ("CUDA devices", ", ".join(info["cuda_devices"]) or "none"),
    ]
    for name, value in rows:
        facts.add_row(f"[bold]{name}[/bold]", str(value))
    console.print(facts)
    table = Table("operator", "on CPU tensors", "on CUDA tensors")
    for name, backends in info["operators"].items():
        table.add_row(name, backends["cpu"], backends["cuda"])
    console.print(table)
    if not info["native"]:
        raise typer.Exit(2)
