# Generated from chapters/93_ground.py by `course build`; edit that file.
"""How a command begins and ends in whatever terminal there is."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["as_command"]


def _close_stdout() -> None:
    """Write out what still can be; the rest goes nowhere, or Python would complain as it ends."""
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError, AttributeError):  # a closed stream is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def as_command(name: str) -> Iterator[None]:
    """Run a command: what is wrong outside the program ends in one line, not in a traceback.

    What the terminal cannot show becomes "?", and a width that nothing fits in 80 columns.

    Args:
        name: stands before the message.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if os.environ.get("COLUMNS", "80").isdigit() and int(os.environ.get("COLUMNS", 80)) < 20:
        os.environ["COLUMNS"] = "80"
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader went, as `head` does
        _close_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _close_stdout()
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        place = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
        elsewhere = bool(error.filename) and error.errno in place
        hint = "; NANOCHAT_BASE_DIR names another place for runs" if elsewhere else ""
        sys.exit(f"{name}: {what}{hint}")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{name}: {error}")
