"""The `showo` command. Each subcommand lives in `showo.commands`; torch loads only when one runs.

Whatever is wrong with what the user gave is raised as a UserError where it is seen, and printed here as one line. No
other kind of exception is expected here: one that comes keeps its traceback, and is called what it is, a bug.
"""

from __future__ import annotations

import io
import sys
import traceback as tracebacks
import warnings
from typing import Annotated, TextIO

import typer

from showo.commands import (
    chat,
    convert,
    demo,
    describe,
    doctor,
    evaluate,
    export,
    extend,
    generate,
    inpaint,
    inspect,
    make_world,
    plan,
    serve,
    story,
    tokenize,
    train,
    vary,
)
from showo.errors import RankError, UserError
from showo.launch import Launch, command_with
from showo.memory import lack_of_memory
from showo.train.stop import Stopped

app = typer.Typer(
    name="showo",
    help="Show-o: one transformer that makes pictures from text and text from pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("inpaint")(inpaint.inpaint)
app.command("extend")(extend.extend)
app.command("vary")(vary.vary)
app.command("describe")(describe.describe)
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)
app.command("story")(story.story)
app.command("serve")(serve.serve)
app.command("inspect")(inspect.inspect)
app.command("tokenize")(tokenize.tokenize)
app.command("train-tokenizer")(train.train_tokenizer)
app.command("train-vision-tower")(train.train_vision_tower)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("plan")(plan.plan)
app.command("make-world")(make_world.make_world)
app.add_typer(evaluate.app, name="evaluate")
app.command("doctor")(doctor.doctor)

_show_traceback = False


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    global _show_traceback
    _show_traceback = traceback


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exit code: 0, also where Ctrl-C or SIGTERM has ended a training, which is saved; 2 for anything wrong with what was
    given, or more than memory has room for; 1 for a bug; 130 for Ctrl-C in anything else.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks is printed as \u1234
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app(args=arguments, prog_name="showo")
        except Stopped:
            if Launch.of_this_process().rank == 0:
                print(f"showo: this goes on with: {command_with('--resume')}", file=sys.stderr)
            raise
        except UserError as error:
            if _show_traceback:
                raise
            if not (isinstance(error, RankError) and error.told):
                print(f"{_speaker()}: {_one_line(error)}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:
            if not _show_traceback and (reason := lack_of_memory(error)):
                print(f"{_speaker()}: {reason}", file=sys.stderr)
                sys.exit(2)
            said = (
                f"{tracebacks.format_exc()}{_speaker()}: this is a bug in showo; please report it with the lines above"
            )
            if Launch.of_this_process().count > 1:
                said = f"{_speaker()}: {said}"
            print(said, file=sys.stderr)  # at once, as other ranks write too
            sys.exit(1)


def _speaker() -> str:
    """What a message begins with: of several processes that torchrun has started, the number too."""
    launch = Launch.of_this_process()
    return f"showo: rank {launch.rank}" if launch.count > 1 else "showo"


def _one_line(message: object) -> str:
    return " ".join(line.strip() for line in str(message).splitlines() if line.strip())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as the user of a command reads it, without the line of code that it came from."""
    print(f"{_speaker()}: warning: {_one_line(message)}", file=sys.stderr)


if __name__ == "__main__":
    main()
