"""The command line: `workbench run | list | show | replay | capsule | compare | verify | doctor | app | lab`.

A command is one entry of `COMMANDS`: what it adds to its parser, and what it does, in a module of its own kind. Options
of sampling come from the declaration of `Sampling`, parameters of decoders are given as `--set name=value`. Only the
chosen command's parser is built, so that help, `show` and `replay` need no torch. Errors are one line on stderr and
exit code 2; Ctrl-C is 130. Nearly all is imported inside `main`, so that this holds of imports too. A fault in the
code, ours or a plug-in's, is one line and its place; with WORKBENCH_TRACEBACK in the environment it is raised.
"""

import os
import sys
import traceback
from collections.abc import Sequence

from workbench.cli.preparing import preparing
from workbench.errors import WorkbenchError, shown

__all__ = ["main"]

STARVED = ("failed to map segment", "annot allocate memory", "an't allocate memory", "can't start new thread")
VARIABLE = "WORKBENCH_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for out in (sys.stdout, sys.stderr):
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="backslashreplace")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    try:
        with preparing():
            from workbench.cli.commands import COMMANDS, parser_for

            args = parser_for(chosen).parse_args(argv)
        return COMMANDS[args.command].execute(args)
    except WorkbenchError as error:
        return fail(str(error))
    except BrokenPipeError:  # the reader of a pipe went away; keep Python from saying so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except Exception as error:
        if starved(error):
            return fail("out of memory; use a smaller model or fewer tokens (a trace under --out is kept)")
        if os.environ.get(VARIABLE):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            return fail(f"{shown(error.filename)}: {error.strerror}")
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {error}"
        return fail(f"fault in {what} (please report it; {VARIABLE}=1 shows all of it)")


def starved(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory is short, which libraries put in many ways."""
    if error is None or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return error is not None
    return any(sign in str(error) for sign in STARVED) or starved(error.__cause__ or error.__context__)


def fail(message: str, code: int = 2) -> int:
    from workbench.report.terminal import escaped

    print(f"workbench: {' '.join(escaped(message).split())}", file=sys.stderr)
    return code
