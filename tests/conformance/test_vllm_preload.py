"""Adapters that are there when a play begins, in vLLM's own host cache and slots."""

from types import SimpleNamespace

import pytest

from calibrate.engine import VllmEngine
from tests.conformance.tiers import TiersCase
from tests.conformance.vllm_tiers import TheirTiers


@pytest.mark.parametrize("slots", [[], ["1"], ["4", "1"]])
def test_adapters_are_as_old_as_their_order_says(slots: list[str]) -> None:
    theirs = TheirTiers(TiersCase(max_loras=2, max_cpu_loras=6, seed=0, steps=[]))
    engine = VllmEngine.__new__(VllmEngine)
    engine.store = SimpleNamespace(request=theirs.lora_request)  # type: ignore[assignment]
    engine.runner = SimpleNamespace(lora_manager=theirs.worker)
    engine.preload([str(number) for number in range(6)], slots)
    assert theirs.host_cache() == ["0", "1", "2", "3", "4", "5"]
    assert set(theirs.slots()) == set(slots)
    assert [theirs.names[number] for number in theirs.models._active_adapters.cache] == slots
