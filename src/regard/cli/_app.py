"""The application: which commands there are, and what becomes of an error.

Exit codes: 0 ok, 1 the check failed, 2 wrong usage or bad input (one line on standard error).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

OK, FAILED, WRONG_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        from cyclopts import App, CycloptsError
    except ImportError:
        _complain("the command line needs its own packages: pip install 'regard[cli]'")
        raise SystemExit(WRONG_USAGE) from None
    from regard._version import __version__

    app = App(
        name="regard",
        help="Attention you can trust, see and afford.",
        version=__version__,
        help_format="plaintext",
        result_action="return_value",
    )
    # By name, so that no command's imports are paid for before it runs.
    app.command("regard.cli.xray:xray", name="xray", help="Look at every attention layer of a model while it reads a text.")
    try:
        code = app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=True)
    except CycloptsError:
        raise SystemExit(WRONG_USAGE) from None
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(OK) from None
    raise SystemExit(code if isinstance(code, int) else OK)


def _complain(line: str) -> None:
    sys.stderr.write(f"regard: {line}\n")
