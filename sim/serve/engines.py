"""The simulated engines of a server: the only module here that knows how one is put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from simpy import Environment

from sim import profile
from sim.adapters import AdapterTiers
from sim.cudagraph import CudaGraphs
from sim.engine import Engine, Observer, Place, Turn
from sim.errors import UserError
from sim.fast_scheduler import make_scheduler
from sim.kv_blocks import KVBlockPool
from sim.memory import check_host_memory, num_gpu_blocks
from sim.prefix_cache import PrefixCachingBlockPool
from sim.profile import Profile
from sim.replicas import ReplicaState, Router, replica_seed
from sim.serve.config import ServeConfig


@dataclass(frozen=True)
class Replica:
    """An engine, and what a server shows of it."""

    engine: Engine
    state: ReplicaState
    kv: KVBlockPool
    num_gpu_blocks: int
    """KV blocks, null block included."""
    profile: Profile

    @property
    def kv_cache_usage(self) -> float:
        """Fraction of the KV blocks in use, without the null block (vllm/v1/core/block_pool.py)."""
        return 1 - self.kv.num_free_blocks / (self.num_gpu_blocks - 1)


def make_replicas(env: Environment, config: ServeConfig, observers: Sequence[Observer]) -> list[Replica]:
    """Return an engine for each observer, as a simulation makes them. Raises UserError and DoesNotFit."""
    turn = Turn()
    places = [Place(rank, turn) for rank in range(len(observers))]
    return [_replica(env, config, place, observer) for place, observer in zip(places, observers, strict=True)]


def make_router(config: ServeConfig, replicas: Sequence[Replica]) -> Router:
    """Return the router in front of the replicas."""
    return Router([replica.engine for replica in replicas], _policy(config.routing, "routing"))


def _replica(env: Environment, config: ServeConfig, place: Place, observer: Observer) -> Replica:
    engine, model, ranks = config.engine, config.model, config.ranks
    seed = replica_seed(config.seed, place.rank)
    loaded = profile.load(config.profile, engine, model, set(ranks.values()), seed)
    if ranks:
        check_host_memory(engine, model, loaded.memory, ranks.values())
    num_blocks = num_gpu_blocks(engine, model, loaded.memory)
    kv = (PrefixCachingBlockPool if engine.enable_prefix_caching else KVBlockPool)(
        num_blocks, engine.block_size
    )
    scheduler = make_scheduler(engine, kv, _policy(config.admission, "admission"))
    slots_policy, host_policy = (_policy(config.eviction, "eviction") for _ in range(2))
    tiers = AdapterTiers(engine.max_loras, engine.host_cache_entries, slots_policy, host_policy, seed)
    tiers.fill(engine.initial_host_cache, engine.initial_slots)
    graphs = CudaGraphs(engine)
    simulated = Engine(env, engine, scheduler, tiers, graphs, loaded.costs, observer, ranks, place)
    return Replica(simulated, ReplicaState(simulated), kv, num_blocks, loaded)


def _policy(settings: Mapping[str, Any], group: str) -> Any:
    """Make a new policy object of the class that ``_target_`` names."""
    try:
        return instantiate(settings)
    except InstantiationException as error:
        raise UserError(f"{group}: {' '.join(str(error).split())}") from error
