"""The driver: lets a simulation's time pass as a clock's does."""

import asyncio
import math
from contextlib import suppress

from simpy import Environment

from sim.serve.clock import Clock


class Driver:
    """Steps ``env`` along ``clock`` and sleeps in between.

    An instant's events happen when it is over, at the first look at the clock after it. So whatever is
    submitted at an instant comes before what the engines do then, as in a simulation (``ENGINES_PRIORITY``).
    """

    def __init__(self, env: Environment, clock: Clock) -> None:
        self.env = env
        self.clock = clock
        self._changed = asyncio.Event()

    def catch_up(self) -> None:
        """Let everything happen that lies before the present instant, and make it the simulation's."""
        now_ns = self.clock.now_ns()
        if now_ns > self.env.now:
            self.env.run(until=now_ns)
            # SimPy puts back the event that it stopped at, before all others of the instant.
            self.env.step()

    def wake(self) -> None:
        """Look again for the next event: there may be an earlier one."""
        self._changed.set()

    async def run(self) -> None:
        """Follow the clock until cancelled. Whatever the simulation raises ends it."""
        while True:
            self.catch_up()
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_next()):
                    await self._changed.wait()

    def _seconds_to_next(self) -> float | None:
        """Return how long nothing will happen by itself; None: for ever."""
        next_ns = self.env.peek()
        return None if math.isinf(next_ns) else max(0.0, self.clock.seconds_until(int(next_ns) + 1))
