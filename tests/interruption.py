"""Commands that a test interrupts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def heed_interrupts() -> None:
    """Let interrupts end this process, and what it starts: a shell's background job inherits that they are
    ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def simulating(folder: Path, *words: str, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start `python -m sim` in a session of its own: none of its processes outlives the test."""
    command = [sys.executable, "-m", "sim", *words]
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, start_new_session=True, **options
    ) as run:
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
