"""Eviction policies: which adapter gives up its GPU slot, or its place in the host cache.

Writing one
-----------
A policy of your own is one Python file and one YAML file, both outside this tree. The Python file, say
``my_policies.py`` in a folder on ``PYTHONPATH``, has a class with the methods of `EvictionPolicy`. `KeyOrder`
answers all of them but two::

    from policies.eviction import KeyOrder

    class Mru(KeyOrder):
        '''Evict the most recent key.'''

        def on_access(self, key):
            self._order.move_to_end(key)

        def victim(self, needed):
            return next(key for key in reversed(self._order) if key not in needed)

The YAML file goes into a folder ``eviction`` of a folder of your own, and its other keys are the arguments of
the class: ``my_conf/eviction/mru.yaml`` says ``_target_: my_policies.Mru``. Then::

    lorasim -m --config-dir my_conf eviction=lru,mru 'seed=range(10)'

Two objects are made for each engine, one for the GPU slots and one for the host cache; each is told of its
own tier, which it may ask for sizes, costs, waiting requests and the clock (`TierView`). A key is *used* by
every step of its requests. Three things are easy to miss:

* `on_repeat` must do what as many calls of `on_access` would do, at once: many steps without a change are
  simulated in one go. The order of `keys` means nothing there; `KeyOrder` knows that of the last step.
* What is in `needed` had better stay: it would be brought back in the same step, at the cost of another.
* The order of a set depends on Python's hash seed. Where two keys are equal, let the least recent go.

``replay(Mru(), 32, references)`` drives a policy alone, with `belady` for the bound, and a test class
that inherits `EvictionConformance` (tests/policies/eviction_conformance.py) checks all of the above.
"""

from policies.eviction.arc import Arc
from policies.eviction.belady import Belady
from policies.eviction.chameleon import Chameleon
from policies.eviction.engine_tier import EngineTier
from policies.eviction.fifo import Fifo
from policies.eviction.gdsf import Gdsf
from policies.eviction.key_order import KeyOrder
from policies.eviction.lfu import Lfu
from policies.eviction.lru import Lru
from policies.eviction.names import POLICIES
from policies.eviction.protocol import EvictionPolicy, TierView
from policies.eviction.queue_aware import QueueAware
from policies.eviction.replay import replay
from policies.eviction.s3fifo import S3Fifo
from policies.eviction.working_set import WorkingSet

__all__ = [
    "POLICIES",
    "Arc",
    "Belady",
    "Chameleon",
    "EngineTier",
    "EvictionPolicy",
    "Fifo",
    "Gdsf",
    "KeyOrder",
    "Lfu",
    "Lru",
    "QueueAware",
    "S3Fifo",
    "TierView",
    "WorkingSet",
    "replay",
]
