"""The requests that decode in lock-step: one token each in every step, and counted together."""

from collections import defaultdict
from dataclasses import dataclass

from sim.kv_blocks import KVBlockPool
from sim.request import Request


@dataclass(slots=True, eq=False)
class Group:
    """Who is in the group, in the order of `running`; never changed, but made anew."""

    requests: list[Request]
    adapters: dict[str, None]
    """The distinct ones in order of first appearance."""
    token_adapters: list[str | None]
    """The adapter of each request's token."""
    num_lora_tokens: int


NO_GROUP = Group([], {}, [], 0)


class Lockstep:
    """Books for all members at once, so that a step costs the same however many there are.

    While a request is a member, its own fields stay as they were when it joined; `settle` brings them up to
    date. `ticks` counts the steps that have been scheduled, `known` those whose tokens are known: a member
    that joined in tick j has been scheduled `ticks` - j times and has `known` - j tokens more.
    """

    def __init__(self, kv: KVBlockPool, asynchronous: bool) -> None:
        self.kv = kv
        self.ticks = 0
        self.known = 0
        self.context = 0
        """Sum of the members' computed tokens, those of scheduled steps included."""
        self.tokens_ns = 0
        """When the last tokens became known."""
        self.members: dict[Request, int] = {}
        """The first tick that each takes part in."""
        self.ends: defaultdict[int, list[Request]] = defaultdict(list)
        """Tick -> requests whose last token it yields, in the order of `running`."""
        self._asynchronous = asynchronous
        self._residues = [0] * kv.block_size
        """How many members need a new block in the ticks that leave this remainder."""
        # Beside the members, so that a new group need not look at each request.
        self._adapter_of: dict[Request, str | None] = {}
        self._num_lora_tokens = 0
        self._group: Group | None = None

    @property
    def group(self) -> Group:
        """The members now; the same object until one joins or leaves."""
        if self._group is None:
            of_tokens = list(self._adapter_of.values())
            adapters = dict.fromkeys(of_tokens)
            if self._num_lora_tokens < len(of_tokens):
                del adapters[None]
            self._group = Group(list(self.members), adapters, of_tokens, self._num_lora_tokens)  # type: ignore[arg-type]
        return self._group

    def join(self, request: Request, final_num_tokens: int) -> None:
        """Take in a request that decodes from the coming tick on, until it has `final_num_tokens`."""
        context = request.num_computed_tokens
        # With n tokens known or under way, n - 1 are computed, and the coming tick yields token n + 1.
        self.ends[self.ticks + final_num_tokens - context - 2].append(request)
        self.members[request] = self.ticks
        self._adapter_of[request] = request.adapter
        self._num_lora_tokens += request.adapter is not None
        self.context += context
        self._residues[(self.ticks - context) % self.kv.block_size] += 1
        self._group = None

    def leave(self, request: Request) -> None:
        """Bring a member's fields up to date and let it go."""
        joined, size, context = self.members.pop(request), self.kv.block_size, request.num_computed_tokens
        self._num_lora_tokens -= self._adapter_of.pop(request) is not None
        scheduled, known = self.ticks - joined, self.known - joined
        self._residues[(joined - context) % size] -= 1
        num_known_tokens = num_computed_tokens = context + scheduled
        self.context -= num_computed_tokens
        request.num_computed_tokens = num_computed_tokens
        if known > 0:
            request.num_tokens += known
            request.last_token_ns = self.tokens_ns
        request.num_kv_blocks = -(-num_computed_tokens // size)
        if self._asynchronous:
            request.num_output_placeholders += scheduled - known if known > 0 else scheduled
            # Known when the last of them was scheduled: there was one step under way.
            num_known_tokens -= 1
        self.kv.cache_blocks(request, num_known_tokens)
        self._group = None

    def num_tokens(self, request: Request) -> int:
        """Tokens that have become known of `request` since it joined; 0 of one that is no member."""
        return max(self.known - self.members.get(request, self.known), 0)

    def clear(self) -> None:
        """Let all members go."""
        for request in list(self.members):
            self.leave(request)
        self.ends.clear()

    def blocks_needed(self, num_ticks: int = 1) -> int:
        """KV blocks that the members need in the next ticks together."""
        size = self.kv.block_size
        if num_ticks == 1:
            return self._residues[self.ticks % size]
        rounds, rest = divmod(num_ticks, size)
        first = self.ticks % size
        of_rest = sum((self._residues * 2)[first : first + rest])
        return rounds * len(self.members) + of_rest

    def tick(self, num_ticks: int = 1) -> None:
        """Schedule all members in the next ticks. There must be blocks for that."""
        size = self.kv.block_size
        num_blocks = self._residues[self.ticks % size] if num_ticks == 1 else self.blocks_needed(num_ticks)
        if num_blocks:
            self.kv.take(num_blocks)
        self.ticks += num_ticks
        self.context += num_ticks * len(self.members)

    def num_same_ticks(self) -> int:
        """Ticks that can follow without anything else: none yields a last token, and there are blocks."""
        if not self.members:
            return 0
        num_ticks = max(0, min(self.ends) - self.ticks + 1)
        while num_ticks and self.blocks_needed(num_ticks) > self.kv.num_free_blocks:
            num_ticks //= 2
        return num_ticks
