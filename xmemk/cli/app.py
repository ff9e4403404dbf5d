"""The commands together, and how their errors are reported."""

from __future__ import annotations

import traceback
from typing import Annotated

import typer
from rich.console import Console

from ..version import __version__
from .arguments import Interrupted
from .bench import bench
from .demo import demo
from .doctor import doctor
from .eval import evaluate
from .segment import segment
from .terminal import console_for
from .validate import validate
from .weights import weights

app = typer.Typer(
    help="Exact, fused kernels for XMem's memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose tables break words on narrow terminals
)
_debug = False
_INTERRUPTED = 130  # the exit code of shells, and of typer, for an interrupt


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    global _debug
    _debug = debug


app.command()(demo)
app.command()(weights)
app.command()(segment)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(validate)
app.command()(doctor)


def run(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit code.

    0: done. 1: failed. 2: wrong arguments. 130: interrupted.
    """
    global _debug
    _debug = False
    errors = console_for(stderr=True)
    try:
        outcome = app(arguments, standalone_mode=False)
    except Interrupted as interrupted:
        errors.print(f"xmemk: interrupted; {interrupted}", markup=False)
        return _INTERRUPTED
    except KeyboardInterrupt:
        outcome = _INTERRUPTED
    except Exception as error:
        return _report(error, errors)
    if outcome == _INTERRUPTED:
        errors.print("xmemk: interrupted")
    return outcome if isinstance(outcome, int) else 0


def _report(error: Exception, errors: Console) -> int:
    # typer's own errors, of wrong arguments, have their own output and exit code.
    code = getattr(error, "exit_code", None)
    if hasattr(error, "format_message") and isinstance(code, int):
        context = getattr(error, "ctx", None)
        if context is not None and not error.format_message().startswith("Usage:"):
            errors.print(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", markup=False)
        errors.print(error.format_message(), markup=False)
        return code
    if _debug:
        errors.print(traceback.format_exc(), markup=False)
    errors.print(f"xmemk: error: {_sentence(error)}", markup=False)
    return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{error.filename}: {reason}"
    expected = isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ImportError))
    sentence = " ".join(str(error).split())
    if expected and sentence:
        return sentence
    return f"unexpected {type(error).__name__}: {sentence}; run again with `xmemk --debug ...` for the traceback"
