"""The application: which commands there are, and what becomes of an error.

Exit codes: 0 ok, 1 the check failed, 2 wrong usage or bad input (one line on standard error), 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


_RUNS = {
    "translation": "Translate English, with word alignment.",
    "image_classification": "Say what piece of clothing is on a picture.",
    "image_text": "Find captions for a picture, or emoji for a text.",
    "summarization": "Summarize a text.",
    "dialogue": "Reply to what was said.",
    "language_model": "Go on writing after a prompt.",
}

TRAINING = ("accelerate", "h5py", "opencc", "PIL", "pydantic", "rouge_score", "sacrebleu", "safetensors", "tensorboard",
            "tokenizers")  # fmt: skip
"""What recipes import, by the names that are imported."""

_PASSPORT_HELP = "Record what a model computes here, and compare it elsewhere."
_PASSPORT = {
    "record": "Record a model's layers, attention and gradients with what is true.",
    "replay": "Compute it again here, and compare.",
    "show": "What a passport holds.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()  # here, where a reader that went away can still be told from a failure
    except KeyboardInterrupt:
        complain("regard", "interrupted; nothing was written")
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit) as ended:  # rich makes the second of the first
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        # The reader of our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    try:
        import rich  # noqa: F401  # pyright: ignore[reportUnusedImport] - only asked whether it is there
        from cyclopts import App, CycloptsError
    except ImportError:
        complain("regard", "the command line needs its own packages: pip install 'regard[cli]'")
        return WRONG_USAGE
    from regard._version import __version__

    app = App(
        name="regard",
        help="Attention you can trust, see and afford.",
        version=__version__,
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    # By name, so that no command's imports are paid for before it runs.
    xray_help = "Look at every attention layer of a model while it reads a text."
    app.command("regard.cli.xray:xray", name="xray", help=xray_help)
    verify_help = "Compare what computes attention with the float64 reference."
    app.command("regard.cli.verify:verify", name="verify", help=verify_help)
    audit_help = "Recover what attention really does, and compare it with what is declared."
    app.command("regard.cli.audit:audit", name="audit", help=audit_help)
    app.command("regard.cli.train:train", name="train", help="Train a recipe on its real data.")
    passport = App(name="passport", help=_PASSPORT_HELP, help_format="plaintext")
    for name, does in _PASSPORT.items():
        passport.command(f"regard.cli.passport:{name}", name=name, help=does)
    app.command(passport)
    run = App(name="run", help="Use a trained recipe on your own input.", help_format="plaintext")
    for name, does in _RUNS.items():
        run.command(f"regard.cli.run:{name}", name=name, help=does)
    app.command(run)
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        complain(" ".join(["regard", *(error.command_chain or ())]), f"{error} See --help.")
        return WRONG_USAGE
    except ImportError as problem:
        package = (problem.name or "").partition(".")[0]
        if package not in TRAINING:
            raise
        command = " ".join(["regard", *arguments[:1]])
        complain(command, f"this needs the package {package!r}: pip install 'regard[train]'")
        return WRONG_USAGE
    return code if isinstance(code, int) else OK


def complain(who: str, what: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{who}: {' '.join(what.split())}\n")
