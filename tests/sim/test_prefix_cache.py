"""The prefix cache by hand, and its bookkeeping on random requests. Blocks of 4 tokens, 8 of them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sim.kv_blocks import KVBlockPool
from sim.prefix_cache import PrefixCachingBlockPool
from sim.request import Request, RequestStatus


def pool(num_blocks: int = 8) -> PrefixCachingBlockPool:
    return PrefixCachingBlockPool(1 + num_blocks, 4)


def request(name: str, prompt: int, *prefix_hashes: int, adapter: str | None = None) -> Request:
    return Request(name, 0, prompt, 1, adapter=adapter, prefix_hashes=prefix_hashes)


def start(kv: PrefixCachingBlockPool, starting: Request) -> int:
    """Admit a request and compute its prompt; returns the number of blocks that it found."""
    found = kv.computed_blocks(starting)
    starting.num_computed_tokens = 0
    assert kv.allocate_slots(starting, starting.num_tokens - 4 * len(found), found)
    starting.num_computed_tokens = starting.num_tokens
    return len(found)


def finish(kv: PrefixCachingBlockPool, finishing: Request) -> None:
    finishing.status = RequestStatus.FINISHED_LENGTH_CAPPED
    kv.free(finishing)


def preempt(kv: PrefixCachingBlockPool, preempted: Request) -> None:
    preempted.status = RequestStatus.PREEMPTED
    kv.free(preempted)


def test_a_prefix_is_shared_while_it_is_used_and_afterwards() -> None:
    kv = pool()
    first, second = request("a", 10, 1, 2), request("b", 10, 1, 2)
    assert start(kv, first) == 0
    assert start(kv, second) == 2
    assert kv.num_used_blocks == 4
    finish(kv, first)
    finish(kv, second)
    assert kv.num_used_blocks == 0
    assert start(kv, request("c", 10, 1, 3)) == 1


def test_the_last_token_is_always_computed() -> None:
    kv = pool()
    assert start(kv, request("a", 8, 1, 2)) == 0
    assert start(kv, request("b", 8, 1, 2)) == 1
    assert start(kv, request("c", 9, 1, 2)) == 2


def test_an_adapter_has_keys_and_values_of_its_own() -> None:
    kv = pool()
    start(kv, request("a", 5, 1, adapter="x"))
    assert not kv.computed_blocks(request("b", 5, 1, adapter="y"))
    assert not kv.computed_blocks(request("c", 5, 1))
    assert len(kv.computed_blocks(request("d", 5, 1, adapter="x"))) == 1


def test_prompts_share_nothing_that_no_hash_says() -> None:
    kv = pool()
    start(kv, request("a", 8))
    assert not kv.computed_blocks(request("b", 8))


def test_the_least_recently_used_goes_first_and_of_one_request_the_last_block() -> None:
    kv = pool()
    old, new = request("old", 13, 1, 2, 3), request("new", 13, 4, 5, 6)
    start(kv, old)
    start(kv, new)
    finish(kv, old)
    finish(kv, new)
    start(kv, request("other", 12))  # The two blocks that were never full, and one more.
    assert len(kv.computed_blocks(request("like old", 13, 1, 2, 3))) == 2
    assert len(kv.computed_blocks(request("like new", 13, 4, 5, 6))) == 3


def test_a_block_that_is_used_again_is_the_most_recent() -> None:
    kv = pool()
    for first_hash in (1, 2):
        finish_after = request(f"first {first_hash}", 5, first_hash)
        start(kv, finish_after)
        finish(kv, finish_after)
    again = request("again", 5, 1)
    assert start(kv, again) == 1
    finish(kv, again)
    start(kv, request("other", 28))
    assert len(kv.computed_blocks(request("b", 5, 1))) == 1
    assert not kv.computed_blocks(request("c", 5, 2))


def test_a_free_block_that_is_found_needs_room() -> None:
    kv = pool(4)
    old = request("old", 9, 1, 2)
    start(kv, old)
    finish(kv, old)
    start(kv, request("other", 8))
    long = request("long", 13, 1, 2)
    assert not kv.allocate_slots(long, 5, kv.computed_blocks(long))
    assert kv.num_free_blocks == 2


def test_a_preempted_request_finds_what_is_left_of_it() -> None:
    kv = pool()
    preempted = request("a", 14, 1)
    start(kv, preempted)
    preempt(kv, preempted)
    assert len(kv.computed_blocks(preempted)) == 3
    start(kv, request("other", 24))
    assert len(kv.computed_blocks(preempted)) == 2


def test_what_a_finished_request_had_for_itself_is_evicted_in_turn() -> None:
    kv = pool()
    own, shared = request("own", 16), request("shared", 16, 1, 2, 3, 4)
    start(kv, own)
    start(kv, shared)
    finish(kv, own)
    finish(kv, shared)
    start(kv, request("other", 20))
    assert len(kv.computed_blocks(request("like shared", 17, 1, 2, 3, 4))) == 3


REQUESTS = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 5), st.sampled_from([None, "x"]), st.integers(0, 2)),
    max_size=40,
)


@given(REQUESTS)
def test_blocks_are_neither_lost_nor_made(drawn: Any) -> None:
    kv, running = pool(12), []
    for number, (prompt, num_shared, adapter, action) in enumerate(drawn):
        new = request(str(number), prompt, *range(min(num_shared, prompt // 4)), adapter=adapter)
        found = kv.computed_blocks(new)
        if kv.allocate_slots(new, new.num_tokens - 4 * len(found), found):
            running.append(new)
        if action and running:
            (finish if action == 1 else preempt)(kv, running.pop(number % len(running)))
        held = {id(block) for blocks in kv._held.values() for block in blocks}
        alone = sum(r.num_kv_blocks - len(kv._held.get(r, ())) for r in running)
        assert kv.num_used_blocks == len(held) + alone
        assert 0 <= sum(block.count for block in kv._evictable) == kv._num_evictable <= kv.num_free_blocks
        assert set(kv._held) <= set(running)
    for left in running:
        finish(kv, left)
    assert kv.num_used_blocks == 0


@given(REQUESTS)
def test_without_anything_to_share_it_gives_out_as_many_blocks_as_the_pool_without_a_cache(
    drawn: Any,
) -> None:
    caching, plain = pool(12), KVBlockPool(13, 4)
    running: list[tuple[Request, Request]] = []
    for number, (prompt, _, adapter, action) in enumerate(drawn):
        pair = request(f"a{number}", prompt, adapter=adapter), request(f"b{number}", prompt, adapter=adapter)
        fits = caching.allocate_slots(pair[0], prompt)
        assert fits == plain.allocate_slots(pair[1], prompt)
        if fits:
            running.append(pair)
        if action and running:
            first, second = running.pop(number % len(running))
            finish(caching, first)
            plain.free(second)
        assert caching.num_free_blocks == plain.num_free_blocks
