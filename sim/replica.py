"""One replica: an engine with all that belongs to it, from its settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import simpy
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from policies.admission import AdmissionPolicy, FcfsSkip, Priority
from policies.eviction import EvictionPolicy, Lru
from policies.prefetch import NoPrefetch, PrefetchPolicy
from sim import profile
from sim.adapters import AdapterTiers
from sim.bounds import NoTiers, bounded_config, bounded_costs, bounded_grid
from sim.config import EnginesConfig
from sim.cudagraph import CudaGraphs
from sim.engine import Engine, Observer, Place
from sim.errors import UserError
from sim.expected import ExpectedCosts
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.loader import Loader
from sim.lora_grid import lora_grid
from sim.memory import check_host_memory, num_gpu_blocks
from sim.metrics import NS_PER_S
from sim.prefix_cache import PrefixCachingBlockPool
from sim.request import Request
from sim.router import ReplicaState, replica_seed
from sim.scheduler import Scheduler
from sim.supervision import WatchedAdmission, WatchedEviction
from sim.view import NO_FUTURE, Future, LiveEngine, LiveTier

VLLMS_OWN = (FcfsSkip, Priority, Lru)
"""Policies that are held against vLLM itself, and need no watch."""


Observe = Callable[[Mapping[str, int]], Observer]
"""Returns who is told of an engine's doings, given the slots that are filled at the start."""


@dataclass(frozen=True)
class Shared:
    """What the replicas of a run have in common."""

    env: simpy.Environment
    config: EnginesConfig
    ranks: Mapping[str, int]
    """Rank of every adapter that can be served."""
    future: Future = NO_FUTURE


class Replica:
    """One engine with all that belongs to it. `place` says which of them it is.

    Raises UserError for an impossible configuration, DoesNotFit for one that needs too much memory.
    """

    def __init__(self, shared: Shared, place: Place, observe: Observe) -> None:
        config, ranks = shared.config, shared.ranks
        engine, model = config.engine, config.model
        self._config, self._ranks = config, ranks
        self._seed = replica_seed(config.seed, place.rank)
        self.profile = profile.load(config.profile, engine, model, set(ranks.values()), self._seed)
        if ranks:
            check_host_memory(engine, model, self.profile.memory, ranks.values())
        self.num_gpu_blocks = num_gpu_blocks(engine, model, self.profile.memory)
        """KV blocks, null block included."""
        self.costs = bounded_costs(config.bound, self.profile.costs)
        self._lora_grid = bounded_grid(config.bound, lora_grid(config.profile, model, engine))
        self._scheduled = bounded_config(config.bound, engine, len(ranks))
        """The settings as the scheduler knows them."""
        self.engine = self._engine(shared.env, shared.future, place, observe)
        self.state = ReplicaState(self.engine)

    @property
    def kv_cache_usage(self) -> float:
        """Fraction of the KV blocks in use, without the null block (vllm/v1/core/block_pool.py)."""
        return self.engine.scheduler.kv.num_used_blocks / (self.num_gpu_blocks - 1)

    def _engine(self, env: simpy.Environment, future: Future, place: Place, observe: Observe) -> Engine:
        engine, ranks, costs = self._config.engine, self._ranks, self.costs
        admission, prefetch = self._admission(), self._prefetch()
        tiers = self._tiers(with_loader=prefetch is not None)
        scheduler = self._scheduler(admission)
        grid = self._lora_grid
        expected = ExpectedCosts(engine, self._config.model, costs, ranks, tiers.host_cache, grid)
        view = LiveEngine(env, engine, scheduler, tiers, expected, future)
        admission.bind(view)
        tiers.slots_policy.bind(LiveTier(view, engine.max_loras, is_host_cache=False))
        tiers.host_policy.bind(LiveTier(view, engine.host_cache_entries, is_host_cache=True))
        tiers.fill(engine.initial_host_cache, engine.initial_slots)
        loader = None if prefetch is None else self._loader(env, view, prefetch)
        observer = observe(tiers.slots)
        graphs = CudaGraphs(self._scheduled)
        return Engine(env, engine, scheduler, tiers, graphs, costs, observer, ranks, place, loader, grid)

    def _admission(self) -> AdmissionPolicy[Request]:
        admission: AdmissionPolicy[Request] = policy(self._config.admission, "admission")
        if isinstance(admission, VLLMS_OWN):
            return admission
        return WatchedAdmission(admission, round(self._config.starvation_s * NS_PER_S))

    def _scheduler(self, admission: AdmissionPolicy[Request]) -> Scheduler:
        engine = self._config.engine
        pool_class = PrefixCachingBlockPool if engine.enable_prefix_caching else KVBlockPool
        kv = pool_class(self.num_gpu_blocks, engine.block_size)
        return make_scheduler(self._scheduled, kv, admission)

    def _tiers(self, with_loader: bool) -> AdapterTiers:
        config, engine = self._config, self._config.engine
        slots_policy = self._eviction(config.eviction, "eviction")
        host_policy = self._eviction(config.host_eviction or config.eviction, "host_eviction")
        if with_loader and isinstance(host_policy, Lru):
            # A step cannot bring back what the loader evicts under it.
            host_policy = Lru(protect_batch=True)
        tiers_class = NoTiers if config.bound == "throughput" else AdapterTiers
        sizes = engine.max_loras, engine.host_cache_entries
        return tiers_class(*sizes, slots_policy, host_policy, self._seed)

    def _eviction(self, settings: Mapping[str, Any], group: str) -> EvictionPolicy:
        eviction: EvictionPolicy = policy(settings, group)
        return eviction if isinstance(eviction, VLLMS_OWN) else WatchedEviction(eviction, group)

    def _prefetch(self) -> PrefetchPolicy | None:
        """Return what the loader asks, if there is something to prefetch and it takes time."""
        if not self._config.prefetch or self._config.bound is not None:
            return None
        prefetch: PrefetchPolicy = policy(self._config.prefetch, "prefetch")
        return None if isinstance(prefetch, NoPrefetch) else prefetch

    def _loader(self, env: simpy.Environment, view: LiveEngine, prefetch: PrefetchPolicy) -> Loader:
        prefetch.bind(view)
        return Loader(env, self._config.loader, prefetch, view.tiers, self._load_ns, view.scheduler.in_use)

    def _load_ns(self, adapter: str) -> int:
        """How long a load takes: the loader's memory is its own, and does not grow."""
        return self.costs.load_ns(False, self._ranks.get(adapter, self._config.engine.max_lora_rank))


def policy(settings: Mapping[str, Any], group: str) -> Any:
    """Make a new policy object of the class that ``_target_`` names. Raises UserError."""
    try:
        return instantiate(settings)
    except InstantiationException as error:
        raise UserError(f"{group}: {' '.join(str(error).split())}") from error
