"""Which engine plays a replica: the compiled one, or the one that knows everything."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Union

from simpy import Environment

from policies.admission import FcfsSkip
from policies.eviction import Lru
from sim.adapters import AdapterTiers
from sim.compiled.limits import LeavesCompiledError
from sim.config import EngineConfig
from sim.costs import ConstantCosts, CostModel
from sim.cudagraph import CudaGraphs
from sim.engine import Engine, Observer, Place
from sim.fast_scheduler import FastScheduler
from sim.loader import Loader
from sim.lora_grid import LoraGrid
from sim.profile import FittedCosts
from sim.recorder import Recorder
from sim.scheduler import Scheduler

try:
    from sim.compiled.engine import CompiledEngine
except ImportError:  # There was no compiler where this was installed.
    CompiledEngine = None  # type: ignore[assignment, misc]

AnyEngine = Union[Engine, "CompiledEngine"]


def make_engine(  # noqa: PLR0913, PLR0917, each a piece of the engine
    env: Environment,
    config: EngineConfig,
    scheduler: Scheduler,
    tiers: AdapterTiers,
    graphs: CudaGraphs,
    costs: CostModel,
    observer: Observer,
    ranks: Mapping[str, int],
    place: Place,
    loader: Loader | None,
    lora_grid: LoraGrid | None,
    compiled: bool,
) -> AnyEngine:
    """Return the engine that is made of these pieces: the compiled one, if it may be and knows them all."""
    is_known = loader is None and lora_grid is None and _is_vllms_own(scheduler, tiers, costs)
    if compiled and CompiledEngine is not None and is_known and isinstance(observer, Recorder):
        # Settings and costs may be numbers of any size, and are converted before anything else happens.
        with suppress(LeavesCompiledError, OverflowError):
            return CompiledEngine(env, config, scheduler, tiers, graphs, costs, observer, ranks, place)
    return Engine(env, config, scheduler, tiers, graphs, costs, observer, ranks, place, loader, lora_grid)


def _is_vllms_own(scheduler: Scheduler, tiers: AdapterTiers, costs: CostModel) -> bool:
    """Whether vLLM's first come, first served and its LRU decide, at the costs of a profile.

    What is derived from these classes may do anything.
    """
    pieces: list[tuple[object, tuple[type, ...]]] = [
        (scheduler, (FastScheduler,)),
        (scheduler.admission, (FcfsSkip,)),
        (tiers, (AdapterTiers,)),
        (costs, (ConstantCosts, FittedCosts)),
    ]
    lrus = [tiers.slots_policy, tiers.host_policy]
    return all(type(piece) in known for piece, known in pieces) and all(
        type(policy) is Lru and not policy.protects_batch for policy in lrus
    )
