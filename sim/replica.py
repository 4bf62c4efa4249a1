"""One replica: an engine with all that belongs to it, from its settings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import simpy

from policies.admission import AdmissionPolicy
from policies.errors import PolicyError
from policies.eviction import EngineTier, EvictionPolicy, Lru
from policies.prefetch import NoPrefetch, PrefetchPolicy
from sim import profile
from sim.adapters import AdapterTiers
from sim.bounds import NoTiers, bounded_config, bounded_costs, bounded_grid, bounded_memory
from sim.compiled.choice import AnyEngine, make_engine
from sim.config import SLOTS, EnginesConfig
from sim.costs import CostModel
from sim.cudagraph import CudaGraphs
from sim.engine import Observer, Place
from sim.errors import UserError
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.loader import Loader
from sim.lora_grid import lora_grid
from sim.memory import check_host_memory, num_gpu_blocks
from sim.metrics import NS_PER_S
from sim.policy import vllms_own
from sim.policy.expected import ExpectedCosts
from sim.policy.objects import policy
from sim.policy.supervision import WatchedAdmission, WatchedEviction, WatchedPrefetch
from sim.policy.view import NO_FUTURE, Future, LiveEngine
from sim.prefix_cache import PrefixCachingBlockPool
from sim.request import Request
from sim.router import ReplicaState, replica_seed
from sim.swap import OneProcess, ProcessCosts

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
    compiled: bool = True
    """Whether engines may be compiled ones, which leave some runs (sim.compiled.limits)."""


class Replica:
    """One engine with all that belongs to it. `place` says which of them it is.

    Raises UserError for an impossible configuration, DoesNotFit for one that needs too much memory.
    """

    def __init__(self, shared: Shared, place: Place, observe: Observe) -> None:
        config, ranks = shared.config, shared.ranks
        engine, model = config.engine, config.model
        self._config, self._ranks, self._compiled = config, ranks, shared.compiled
        self._seed = replica_seed(config.seed, place.rank)
        self._starvation_ns = round(config.starvation_s * NS_PER_S)
        self.profile = profile.load(config.profile, engine, model, set(ranks.values()), self._seed)
        if ranks:
            check_host_memory(engine, model, self.profile.memory, ranks.values())
        self.num_gpu_blocks = num_gpu_blocks(bounded_memory(config.bound, engine), model, self.profile.memory)
        """KV blocks, null block included."""
        self.costs = self._costs()
        self._lora_grid = bounded_grid(config.bound, lora_grid(config.profile, model, engine))
        self._scheduled = bounded_config(config.bound, engine, len(ranks))
        """The settings as the scheduler knows them."""
        self.engine = self._engine(shared.env, shared.future, place, observe)
        self.state = ReplicaState(self.engine)

    @property
    def kv_cache_usage(self) -> float:
        """Fraction of the KV blocks in use, without the null block (vllm/v1/core/block_pool.py)."""
        return self.engine.num_used_blocks / max(1, self.num_gpu_blocks - 1)

    def _engine(self, env: simpy.Environment, future: Future, place: Place, observe: Observe) -> AnyEngine:
        engine, ranks, costs = self._config.engine, self._ranks, self.costs
        prefetch = self._prefetch()
        pool_class = PrefixCachingBlockPool if engine.enable_prefix_caching else KVBlockPool
        kv = pool_class(self.num_gpu_blocks, engine.block_size)
        admission, tiers = self._admission(kv), self._tiers(with_loader=prefetch is not None)
        scheduler = make_scheduler(self._scheduled, kv, admission)
        grid = self._lora_grid
        expected = ExpectedCosts(engine, self._config.model, costs, ranks, tiers.host_cache, grid)
        view = LiveEngine(env, engine, scheduler, tiers, expected, future)
        admission.bind(view)
        tiers.slots_policy.bind(EngineTier(view, engine.max_loras, expected.activate_ns))
        tiers.host_policy.bind(EngineTier(view, engine.host_cache_entries, expected.load_ns))
        tiers.fill(engine.warm_host_cache, engine.warm_slots)
        loader = None if prefetch is None else self._loader(env, view, prefetch)
        observer = observe(tiers.slots)
        graphs = CudaGraphs(self._scheduled)
        pieces = scheduler, tiers, graphs, costs, observer, ranks, place, loader, grid
        return make_engine(env, engine, *pieces, self._compiled)

    def _costs(self) -> CostModel:
        config, costs = self._config, self.profile.costs
        if config.swap.mechanism != SLOTS:
            return ProcessCosts(costs, config.swap, is_running=bool(config.engine.warm_slots))
        return bounded_costs(config.bound, costs)

    def _admission(self, kv: KVBlockPool) -> AdmissionPolicy[Request]:
        config = self._config
        admission: AdmissionPolicy[Request] = policy(config.admission, "admission")
        if type(admission) not in vllms_own.CLASSES:
            admission = WatchedAdmission(admission, self._starvation_ns)
        if config.swap.mechanism != SLOTS:
            served = next(iter(config.engine.warm_slots), None)
            admission = OneProcess(admission, served, kv.reset_prefix_cache)
        return admission

    def _tiers(self, with_loader: bool) -> AdapterTiers:
        config, engine = self._config, self._config.engine
        slots_policy = self._eviction(config.eviction, "eviction")
        host_policy = self._eviction(config.host_eviction or config.eviction, "host_eviction")
        if with_loader and type(host_policy) is Lru:
            # A step cannot bring back what the loader evicts under it.
            host_policy = Lru(protect_batch=True)
        tiers_class = NoTiers if config.bound == "throughput" else AdapterTiers
        sizes = engine.max_loras, engine.host_cache_entries
        return tiers_class(*sizes, slots_policy, host_policy, self._seed)

    def _eviction(self, settings: Mapping[str, Any], group: str) -> EvictionPolicy:
        eviction: EvictionPolicy = policy(settings, group)
        return eviction if type(eviction) in vllms_own.CLASSES else WatchedEviction(eviction, group)

    def _prefetch(self) -> PrefetchPolicy | None:
        """Return what the loader asks, if there is something to prefetch and it takes time."""
        if not self._config.prefetch or self._config.bound is not None:
            return None
        prefetch: PrefetchPolicy = policy(self._config.prefetch, "prefetch")
        if isinstance(prefetch, NoPrefetch):
            return None
        if self._config.swap.mechanism != SLOTS:
            raise UserError(
                f"prefetch={type(prefetch).__name__}: {self._config.swap.mechanism} has no host cache to "
                "fill; expected none"
            )
        return WatchedPrefetch(prefetch, self._ranks, self._starvation_ns)

    def _loader(self, env: simpy.Environment, view: LiveEngine, prefetch: PrefetchPolicy) -> Loader:
        prefetch.bind(view)
        return Loader(env, self._config.loader, prefetch, view.tiers, self._load_ns, view.scheduler.in_use)

    def _load_ns(self, adapter: str) -> int:
        """How long a load takes: the loader's memory is its own, and does not grow."""
        return self.costs.load_ns(False, self._ranks.get(adapter, self._config.engine.max_lora_rank))


@contextmanager
def naming_the_step(env: simpy.Environment, replicas: Sequence[Replica]) -> Iterator[None]:
    """Say of a policy that misbehaves in which step of its engine it does. Raises UserError.

    ``replicas`` may still be empty, or not complete.
    """
    try:
        yield
    except PolicyError as error:
        steps = ", ".join(str(replica.engine.num_steps) for replica in replicas) or "0"
        raise UserError(f"{error} (step {steps}, {env.now / NS_PER_S:.6f} s)") from error
