"""The shipped eviction policies by name: that of the file, and of the YAML file in conf/eviction."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from policies.eviction.arc import Arc
from policies.eviction.belady import Belady
from policies.eviction.chameleon import Chameleon
from policies.eviction.fifo import Fifo
from policies.eviction.gdsf import Gdsf
from policies.eviction.lfu import Lfu
from policies.eviction.lru import Lru
from policies.eviction.protocol import EvictionPolicy
from policies.eviction.queue_aware import QueueAware
from policies.eviction.s3fifo import S3Fifo
from policies.eviction.working_set import WorkingSet

POLICIES: Mapping[str, Callable[[], EvictionPolicy]] = MappingProxyType(
    {
        "arc": Arc,
        "belady": Belady,
        "chameleon": Chameleon,
        "fifo": Fifo,
        "gdsf": Gdsf,
        "lfu": Lfu,
        "lru": Lru,
        "queue_aware": QueueAware,
        "s3fifo": S3Fifo,
        "working_set": WorkingSet,
    }
)
