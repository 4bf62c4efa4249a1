"""Worker processes that leave Ctrl-C to the process that started them."""

import signal
from multiprocessing import resource_tracker
from typing import Any

from joblib.externals.loky.backend.popen_loky_posix import Popen
from joblib.externals.loky.backend.resource_tracker import ensure_running


def shield_workers() -> None:
    """Let joblib start its processes with SIGINT blocked, which a terminal sends to all of them.

    They would fall out of whatever they import, each with a traceback; joblib kills them in any case. A
    signal mask is inherited, and what comes meanwhile waits for its end.
    """
    launch = Popen._launch
    if launch.__module__ == __name__:
        return

    def launch_shielded(self: Any, process: Any) -> None:
        # Now, since either ends by letting the signal through again.
        resource_tracker.ensure_running()
        ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            launch(self, process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    Popen._launch = launch_shielded
