"""KV cache blocks that keep their contents when they are free: prefix caching."""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sim.kv_blocks import KVBlockPool
from sim.request import Request

Contents = tuple[str | None, int] | tuple[Request, int]
"""What makes two full blocks equal: the adapter and a hash of the prompt up to the block's end, or, for what
no other request has, the request and the block's number in it."""


@dataclass(slots=True, eq=False)
class CachedBlock:
    """A full block. It is found by its contents until it is evicted, which only free blocks are."""

    contents: Contents | None
    """None where nobody will ask again: this stands for `count` blocks then, of one request or several."""
    num_users: int = 1
    count: int = 1


class PrefixCachingBlockPool(KVBlockPool):
    """What vLLM's `KVCacheManager` and `BlockPool` decide with prefix caching (vllm/v1/core).

    vLLM's free queue has two parts: blocks without known contents, used first and all alike, so a number is
    enough for them; and cached blocks, least recently used first, of one request the last first. Its blocks
    get their contents when they are allocated (`allocate_slots`), or when a generated token is known
    (`AsyncScheduler._update_request_with_output`).

    Blocks that only their own request could find need no object while it runs, nor once it has finished:
    only a preempted request comes back for them.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self._cached: defaultdict[Contents, dict[CachedBlock, None]] = defaultdict(dict)
        """All blocks of the same contents, oldest first: vLLM's are not merged."""
        self._held: defaultdict[Request, list[CachedBlock]] = defaultdict(list)
        """The first blocks of each request: those that others, or itself when preempted, can find."""
        self._evictable: OrderedDict[CachedBlock, None] = OrderedDict()
        """Cached blocks without a user, in order of eviction."""
        self._num_evictable = 0

    def computed_blocks(self, request: Request) -> Sequence[CachedBlock]:
        """Return the cached blocks that `request`, which waits, begins with.

        Its last token is never among them: it is computed to get the next one (`get_computed_blocks`).
        """
        if not self._cached:
            return ()
        blocks: list[CachedBlock] = []
        for number in range((request.num_tokens - 1) // self.block_size):
            found = self._cached.get(self._contents(request, number))
            if found is None:
                break
            blocks.append(next(iter(found)))
        return blocks

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[CachedBlock] = (),
        full_sequence_must_fit: bool = False,
    ) -> bool:
        """Give `request`, which has `computed_blocks` already, the blocks it lacks for `num_new_tokens` more.

        A computed block that is free counts as one of them. The tokens' blocks are in the cache from now on,
        before they are computed.
        """
        size, num_blocks, num_reused = self.block_size, request.num_kv_blocks, 0
        needed_tokens = request.num_computed_tokens + num_new_tokens
        if computed_blocks:
            num_blocks += len(computed_blocks)
            needed_tokens += len(computed_blocks) * size
            num_reused = sum(not block.num_users for block in computed_blocks)
        num_new_blocks = -(-needed_tokens // size) - num_blocks
        known_tokens = request.num_tokens
        required = num_new_blocks
        if full_sequence_must_fit and known_tokens > needed_tokens:
            required = -(-known_tokens // size) - num_blocks
        if required + num_reused > self.num_free_blocks:
            return False
        if computed_blocks:
            self._touch(request, computed_blocks)
        if num_new_blocks:
            request.num_kv_blocks += num_new_blocks
            self.take(num_new_blocks)
        self.cache_blocks(request, needed_tokens if needed_tokens < known_tokens else known_tokens)
        return True

    def take(self, num_blocks: int) -> None:
        """Give `num_blocks` of the free blocks to requests that hold them together."""
        self.num_free_blocks -= num_blocks
        excess = self._num_evictable - self.num_free_blocks
        if excess > 0:
            self._evict(excess)

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        """Take note that the first `num_tokens` of `request` are known, and the full blocks among them."""
        num_full_blocks = num_tokens // self.block_size
        if num_full_blocks > request.num_cached_blocks:
            if request.prefix_hashes:
                num_shared_blocks = min(num_full_blocks, len(request.prefix_hashes))
                self._add_to_cache(request, request.num_cached_blocks, num_shared_blocks)
            request.num_cached_blocks = num_full_blocks

    def free(self, request: Request) -> None:
        """Take back all blocks of `request`, to be evicted in reverse order, those not in the cache first."""
        blocks = self._held.get(request, ())
        if not request.is_finished:
            self._add_to_cache(request, len(blocks), request.num_cached_blocks)
            blocks = self._held.get(request, ())
        elif num_own_blocks := request.num_cached_blocks - len(blocks):
            self._make_forgettable(num_own_blocks)
        self.num_free_blocks += request.num_kv_blocks - len(blocks)
        for block in reversed(blocks):
            block.num_users -= 1
            if not block.num_users:
                self.num_free_blocks += 1
                self._evictable[block] = None
                self._num_evictable += 1
        if blocks:
            del self._held[request]
        request.num_kv_blocks = request.num_cached_blocks = 0

    def reset_prefix_cache(self) -> None:
        """Forget the contents of all blocks, of which none is in use (`BlockPool.reset_prefix_cache`)."""
        self._cached.clear()
        self._evictable.clear()
        self._num_evictable = 0

    def _contents(self, request: Request, number: int) -> Contents:
        if number < len(request.prefix_hashes):
            return request.adapter, request.prefix_hashes[number]
        return request, number

    def _add_to_cache(self, request: Request, first: int, end: int) -> None:
        for number in range(first, end):
            block = CachedBlock(self._contents(request, number))
            self._cached[self._contents(request, number)][block] = None
            self._held[request].append(block)

    def _touch(self, request: Request, blocks: Sequence[CachedBlock]) -> None:
        """Let a request without any blocks use `blocks`."""
        for block in blocks:
            if not block.num_users:
                del self._evictable[block]
                self._num_evictable -= 1
                self.num_free_blocks -= 1
            block.num_users += 1
        self._held[request] = list(blocks)
        request.num_kv_blocks = request.num_cached_blocks = len(blocks)

    def _make_forgettable(self, num_blocks: int) -> None:
        """Let blocks that nobody will ask for again be evicted, after all that are evictable now."""
        self._num_evictable += num_blocks
        youngest = next(reversed(self._evictable), None)
        if youngest is not None and youngest.contents is None:
            youngest.count += num_blocks
        else:
            self._evictable[CachedBlock(None, 0, num_blocks)] = None

    def _evict(self, excess: int) -> None:
        """Forget the contents of so many cached free blocks."""
        self._num_evictable -= excess
        while excess:
            block = next(iter(self._evictable))
            if block.count > excess:
                block.count -= excess
                return
            excess -= block.count
            del self._evictable[block]
            if block.contents is not None:
                self._forget(block, block.contents)

    def _forget(self, block: CachedBlock, contents: Contents) -> None:
        same = self._cached[contents]
        del same[block]
        if not same:
            del self._cached[contents]
