"""The clock that a served simulation follows."""

import time
from collections.abc import Callable


class Clock:
    """Simulated time in ns: 0 when the clock is made, and ``speed`` times as fast as ``time_ns`` tells."""

    def __init__(self, speed: float = 1.0, time_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.speed = speed
        self._time_ns = time_ns
        self._start_ns = time_ns()

    def now_ns(self) -> int:
        """Return the present instant."""
        return int((self._time_ns() - self._start_ns) * self.speed)

    def seconds_until(self, time_ns: int) -> float:
        """Return the seconds of ``time_ns``'s source that are left; negative for what has passed."""
        return (time_ns - self.now_ns()) / self.speed / 1e9
