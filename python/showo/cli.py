"""The `showo` command. Each subcommand lives in `showo.commands`; torch loads only when one runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from showo.commands import describe, doctor, generate, train

app = typer.Typer(
    name="showo",
    help="Show-o: one transformer that makes pictures from text and text from pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("describe")(describe.describe)
app.command("train-tokenizer")(train.train_tokenizer)
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)

_show_traceback = False


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    global _show_traceback
    _show_traceback = traceback


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 0, 2 for anything wrong with what was given, 130 for Ctrl-C."""
    try:
        app(args=arguments, prog_name="showo")
    except (ValueError, OSError, ImportError) as error:
        if _show_traceback:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"showo: {' '.join(line.strip() for line in lines)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
