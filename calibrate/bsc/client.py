"""The study's client: Poisson arrivals of every adapter, each over a connection of its own, while ports last.

It runs beside the server, and Linux gives outgoing connections the ports 32768 to 60999
(`net.ipv4.ip_local_port_range`). A request that finds none free fails at once and is not tried again, so no
more than 28,232 can be waiting or running, however many are sent.
"""

from array import array
from collections.abc import Iterator
from functools import partial
from statistics import NormalDist

import numpy as np
import simpy
from scipy.optimize import brentq
from simpy.events import Event

from calibrate.bsc.front_end import FrontEnd
from calibrate.bsc.settings import Setting, adapter_name
from sim.engine import Engine
from sim.metrics import NS_PER_S
from sim.request import Request
from sim.workload.streams import endless, stream

NUM_PORTS = 60999 - 32768 + 1
SHORTEST, LONGEST = 4, 1024
"""The study's client takes ShareGPT's conversations whose prompt and answer are this long."""
INPUT_SIGMA, OUTPUT_SIGMA = 1.3, 1.1
"""Of the lognormal lengths: ShareGPT's prompts spread more than its answers."""
BLOCK = 1024
NORMAL = NormalDist()


def location(mean: float, sigma: float) -> float:
    """Return the mean of the logarithm with which lengths from SHORTEST to LONGEST have the mean `mean`."""

    def excess(mu: float) -> float:
        low, high = ((np.log(edge) - mu) / sigma for edge in (SHORTEST - 0.5, LONGEST + 0.5))
        kept = NORMAL.cdf(high) - NORMAL.cdf(low)
        part = NORMAL.cdf(high - sigma) - NORMAL.cdf(low - sigma)
        return float(np.exp(mu + sigma**2 / 2) * part / kept - mean)

    return float(brentq(excess, 0.0, 10.0))


def lengths(mean: float, sigma: float, seed: int, name: str) -> Iterator[int]:
    """Yield lognormal lengths from SHORTEST to LONGEST, each BLOCK of them with the mean `mean`.

    A block holds the middle of each of BLOCK equal parts of the distribution, in random order: the mean of a
    row is that of the requests that were made, and not of those that they were drawn from.
    """
    rng, mu = stream(seed, name), location(mean, sigma)
    low, high = (NORMAL.cdf((np.log(edge) - mu) / sigma) for edge in (SHORTEST - 0.5, LONGEST + 0.5))
    middles = low + (high - low) * (np.arange(BLOCK) + 0.5) / BLOCK
    drawn = np.rint(np.exp(mu + sigma * np.array([NORMAL.inv_cdf(middle) for middle in middles])))
    block = drawn.clip(SHORTEST, LONGEST).astype(np.int64)
    return endless(lambda _: rng.permutation(block))


class Client:
    """Sends to one engine, and keeps what its requests tell when they are complete.

    All arrivals together are a Poisson process of the sum of the rates, each for an adapter in proportion
    to its rate. The study's client draws its waits with numpy's generator and seed 0, one after another for
    whichever adapter is next; their sum decides how many arrive, and it is the same here. An arrival that
    finds no port leaves no trace, so those between the one that takes the last port and the next completion
    are not drawn.
    """

    def __init__(self, env: simpy.Environment, setting: Setting, front_end: FrontEnd, seed: int) -> None:
        self.env = env
        self._front_end = front_end
        self.engine: Engine | None = None
        self.num_sent = 0
        self.num_completed = self.num_input_tokens = self.num_output_tokens = 0
        self.num_gaps = self.gaps_ns = 0
        self.blocked_ns = 0
        self.ttfts_ns = array("q")
        self._setting = setting
        self._num_in_flight = 0
        self._blocked_since_ns: int | None = None
        arrivals = np.random.RandomState(seed)
        self._waits_s = endless(lambda size: arrivals.standard_exponential(size) / setting.request_rate)
        share = np.cumsum(setting.rates) / setting.request_rate
        popularity = stream(seed, "popularity")
        self._indices = endless(lambda size: np.searchsorted(share, popularity.random(size), side="right"))
        self._names = [adapter_name(index) for index in range(setting.num_adapters)]
        self._input_lengths = lengths(setting.mean_input_length, INPUT_SIGMA, seed, "input_length")
        self._output_lengths = lengths(setting.mean_output_length, OUTPUT_SIGMA, seed, "output_length")
        self._arrival_s = 0.0

    def start(self, engine: Engine) -> None:
        """Begin to send."""
        self.engine = engine
        self._await_next()

    def sent_in(self, duration_s: float) -> float:
        """Return the requests sent, with those expected of the times when no port was free."""
        blocked_ns = self.blocked_ns
        if self._blocked_since_ns is not None:
            blocked_ns += round(duration_s * NS_PER_S) - self._blocked_since_ns
        return self.num_sent + self._setting.request_rate * blocked_ns / NS_PER_S

    def _await_next(self) -> None:
        self._arrival_s += next(self._waits_s)
        delay_ns = round(self._arrival_s * NS_PER_S) - int(self.env.now)
        self.env.timeout(max(delay_ns, 0)).callbacks.append(self._send)

    def _send(self, _: Event) -> None:
        adapter = self._names[min(next(self._indices), len(self._names) - 1)]
        request = Request(
            str(self.num_sent),
            int(self.env.now),
            next(self._input_lengths),
            next(self._output_lengths),
            adapter=adapter,
        )
        self.num_sent += 1
        self._num_in_flight += 1
        delay_ns = self._front_end.passes_ns(request.arrival_ns) - request.arrival_ns
        if delay_ns:
            self.env.timeout(delay_ns).callbacks.append(partial(self._hand_over, request))
        else:
            self._hand_over(request)
        if self._num_in_flight < NUM_PORTS:
            self._await_next()
        else:
            self._blocked_since_ns = int(self.env.now)

    def _hand_over(self, request: Request, _: Event | None = None) -> None:
        assert self.engine is not None
        self._front_end.on_arrival(request)
        self.engine.submit(request)

    def on_finished(self, request: Request) -> None:
        """Take note that ``request`` is complete: its port is free."""
        assert request.first_token_ns is not None and request.last_token_ns is not None
        self.num_completed += 1
        self.num_input_tokens += request.num_prompt_tokens
        self.num_output_tokens += request.output_length
        first_ns, last_ns = map(self._front_end.passes_ns, (request.first_token_ns, request.last_token_ns))
        self.ttfts_ns.append(first_ns - request.arrival_ns + self._front_end.transit_ns(request))
        self.num_gaps += request.output_length - 1
        self.gaps_ns += last_ns - first_ns
        self._num_in_flight -= 1
        if self._blocked_since_ns is not None:
            now_ns = int(self.env.now)
            self.blocked_ns += now_ns - self._blocked_since_ns
            self._blocked_since_ns = None
            self._arrival_s = now_ns / NS_PER_S
            self._await_next()
