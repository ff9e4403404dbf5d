"""The command line, ``xmemk`` or ``python -m xmemk``.

typer parses the arguments, rich prints tables and progress bars.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line.

    An error is one sentence on stderr and exit code 1; --debug adds the traceback.
    """
    try:
        try:
            import rich  # noqa: F401
            import typer  # noqa: F401
        except ModuleNotFoundError as missing:
            print(f"xmemk: the command line needs {missing.name}: pip install 'xmemk[cli]'", file=sys.stderr)
            sys.exit(1)
        from .app import run

        sys.exit(run())
    except KeyboardInterrupt:  # while modules are loaded, or when the work is done
        print("xmemk: interrupted", file=sys.stderr)
        sys.exit(130)
