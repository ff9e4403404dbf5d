"""The commands together, and how their errors are reported."""

from __future__ import annotations

import traceback
from typing import Annotated

import typer
from rich.console import Console

from ..version import __version__
from .bench import bench
from .demo import demo
from .doctor import doctor
from .eval import evaluate
from .segment import segment
from .validate import validate
from .weights import weights

app = typer.Typer(
    help="Exact, fused kernels for XMem's memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        outcome = app(arguments, standalone_mode=False)
    except KeyboardInterrupt:
        outcome = _INTERRUPTED
    except Exception as error:
        return _report(error, errors)
    if outcome == _INTERRUPTED:
        errors.print("xmemk: interrupted")
    return outcome if isinstance(outcome, int) else 0


def _report(error: Exception, errors: Console) -> int:
    # typer's own errors, of wrong arguments, have their own output and exit code.
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    if _debug:
        errors.print(traceback.format_exc(), markup=False)
    expected = isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ImportError))
    sentence = " ".join(str(error).split())
    if not expected or not sentence:
        sentence = (
            f"unexpected {type(error).__name__}: {sentence}; run again with `xmemk --debug ...` for the traceback"
        )
    errors.print(f"xmemk: error: {sentence}", markup=False)
    return 1
