from collections.abc import Collection, Mapping

from simpy import Environment

from sim.adapters import AdapterTiers
from sim.config import EngineConfig
from sim.costs import CostModel
from sim.cudagraph import CudaGraphs
from sim.engine import Place
from sim.recorder import Recorder
from sim.request import Request
from sim.scheduler import Scheduler

class CompiledEngine:
    loader: None
    num_steps: int
    def __init__(
        self,
        env: Environment,
        config: EngineConfig,
        scheduler: Scheduler,
        tiers: AdapterTiers,
        graphs: CudaGraphs,
        costs: CostModel,
        observer: Recorder,
        ranks: Mapping[str, int],
        place: Place,
    ) -> None: ...
    def submit(self, request: Request) -> None: ...
    def abort(self, request: Request) -> None: ...
    def stop(self) -> None: ...
    def settle(self) -> None: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_deferred(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_used_blocks(self) -> int: ...
    @property
    def slots(self) -> Collection[str]: ...
    @property
    def host_cache(self) -> Collection[str]: ...
