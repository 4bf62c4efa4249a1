"""What happens to adapters against vLLM's own LRUCacheWorkerLoRAManager: exact equality, in order."""

import random
from collections import Counter

from tests.conformance.tiers import OurTiers, draw_case, play
from tests.conformance.vllm_tiers import TheirTiers

NUM_CASES = 1500


def test_loads_evictions_activations_and_slots() -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_CASES):
        case = draw_case(random.Random(seed))
        ours = OurTiers(case)
        assert play(case, ours) == play(case, TheirTiers(case)), f"seed {seed}"
        seen.update(ours.seen)
    print(NUM_CASES, "cases:", dict(seen))
    assert min(seen.values()) > NUM_CASES
