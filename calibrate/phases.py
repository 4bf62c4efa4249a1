"""The measurement phases: which batches the engine is made to run, one function a phase.

Each phase labels its steps, so that the fit can tell them apart; cells are shuffled with the run's own seed,
so that two runs of the same settings do not share an order. Steps that only bring the engine to where a cell
begins are labelled `setup` and left out of the fit.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from calibrate.engine import VllmEngine
from calibrate.probe import Probe

SETTLE_STEPS = 3
"""Steps left out after a change of the batch: the pipeline is two deep, and the first step activates
adapters.
"""


@dataclass(frozen=True)
class Bench:
    """One engine run under measurement: the engine, its probe, its settings and the run's own generator."""

    engine: VllmEngine
    probe: Probe
    max_loras: int
    budget: int
    """Tokens of a step at most (`max_num_batched_tokens`)."""
    rng: np.random.Generator

    def adapters(self, count: int) -> list[str]:
        """The first `count` adapters: sets are nested, so that changing the number activates as few as
        possible.
        """
        return [f"adapter-{i:04d}" for i in range(count)]

    def steps(self, count: int, phase: str, cell: str) -> None:
        """Settle, then record `count` steps under a label."""
        self.probe.label("setup", cell)
        for _ in range(SETTLE_STEPS):
            self.engine.step()
        self.probe.label(phase, cell)
        for _ in range(count):
            self.engine.step()
        self.probe.label("setup")


def assignment(requests: list[str], adapters: list[str]) -> dict[str, str | None]:
    """Deal adapters out to requests in turn; none to anybody where there are no adapters."""
    dealt = itertools.cycle(adapters or [None])
    return dict(zip(requests, dealt, strict=False))


@contextmanager
def decoding(bench: Bench, batch: int, context: int) -> Iterator[list[str]]:
    """Hold `batch` requests of `context` prompt tokens in decode; abort what is left of them in the end."""
    bench.probe.label("setup")
    engine = bench.engine
    room = engine.core.vllm_config.model_config.max_model_len - context
    requests = [engine.add(f"decode-{context}-{i}", context, room) for i in range(batch)]
    engine.step_until(lambda: all(engine.scheduler.requests[r].num_output_tokens > 0 for r in requests))
    try:
        yield requests
    finally:
        engine.abort(requests)
        engine.drain()
        bench.probe.synchronize()


def warm_up(bench: Bench) -> None:
    """Run every kind of step once, so that Triton has compiled its kernels and allocators have grown."""
    with decoding(bench, 64, 64) as requests:
        for count in sorted({0, 1, 2, bench.max_loras}):
            bench.engine.reassign(assignment(requests, bench.adapters(min(count, 64))))
            for tokens in (100, 600, 3000, 8000):
                bench.engine.add(
                    f"warm-{count}-{tokens}", tokens, 1, bench.adapters(count)[0] if count else None
                )
                bench.steps(4, "setup", "warm-up")


def decode(bench: Bench, context: int, batches: list[int], counts: list[int], num_steps: int) -> None:
    """Decode-only steps over batch size x number of distinct adapters at one context length, largest batch
    first.
    """
    with decoding(bench, max(batches), context) as requests:
        for batch in sorted(batches, reverse=True):
            surplus, requests[batch:] = requests[batch:], []
            bench.engine.abort(surplus)
            for count in bench.rng.permutation([c for c in counts if c <= min(batch, bench.max_loras)]):
                bench.engine.reassign(assignment(requests, bench.adapters(int(count))))
                bench.steps(num_steps, "decode", f"batch={batch} adapters={count} context={context}")


def mixed(bench: Bench, cells: list[tuple[int, int, int, int]], batches: list[int], repeats: int) -> None:
    """Steps with prefill; a cell is (decoding requests, prefill tokens, prefill requests, adapters)."""
    for batch in sorted(set(batches)):
        mine = [cell for cell in cells if cell[0] == batch]
        with decoding(bench, batch, 128) as requests:
            for _, tokens, parts, count in mine:
                adapters = bench.adapters(min(count, bench.max_loras))
                bench.engine.reassign(assignment(requests, adapters))
                cell = f"decoding={batch} tokens={tokens} parts={parts} adapters={len(adapters)}"
                for repeat in range(repeats):
                    bench.steps(0, "setup", cell)
                    bench.probe.label("mixed", cell)
                    prefill(bench, f"{cell} {repeat}", [tokens // parts] * parts, adapters)
            bench.probe.label("setup")


def prefill(bench: Bench, name: str, lengths: list[int], adapters: list[str]) -> None:
    """Submit prompts that generate one token each, and step until they have finished."""
    dealt = itertools.cycle(adapters or [None])
    engine = bench.engine
    names = [
        engine.add(f"{name} {i}", length, 1, adapter)
        for i, (length, adapter) in enumerate(zip(lengths, dealt, strict=False))
    ]
    engine.step_until(lambda: not any(n in engine.scheduler.requests for n in names))


def backlog(bench: Bench, cells: list[tuple[int, int]], batch: int) -> None:
    """Steps that are launched while a long prefill still keeps the GPU busy, so that their GPU time shows on
    its own.

    Without a backlog a step above the captured graph sizes is bound by the host's launches, and its GPU time
    is hidden. Cells are (prefill tokens, adapters).
    """
    with decoding(bench, batch, 128) as requests:
        for number, (tokens, count) in enumerate(cells):
            adapters = bench.adapters(min(count, bench.max_loras))
            bench.engine.reassign(assignment(requests, adapters))
            bench.steps(0, "setup", "backlog")
            bench.engine.add(f"backlog-{number}", bench.budget - batch, 1, adapters[0] if adapters else None)
            bench.engine.step()
            bench.probe.label("backlog", f"tokens={tokens} adapters={len(adapters)}")
            prefill(bench, f"behind-{number}", [tokens], adapters)
            bench.probe.label("setup")


def long_prompts(bench: Bench, lengths: list[int]) -> None:
    """Prompts above the token budget, prefilled in chunks: the later chunks attend to the earlier ones."""
    for length in lengths:
        bench.probe.label("mixed", f"prompt={length}")
        prefill(bench, f"long-{length}", [length], bench.adapters(1))
    bench.probe.label("setup")
    bench.probe.synchronize()


def loads(bench: Bench, fresh: int, recycled: int, batch: int) -> None:
    """Loads from disk: into a host cache that grows, then in the place of an adapter that left it.

    With a batch of 0 the engine decodes one request, else it is busy with `batch` of them.
    """
    with decoding(bench, max(batch, 1), 128) as requests:
        for kind, count in (("fresh", fresh), ("recycled", recycled)):
            for number in range(count):
                name = f"{kind}-{batch}-{number}"
                bench.probe.label("setup")
                if kind == "recycled":
                    bench.engine.core.remove_lora(
                        bench.engine.store.request(f"fresh-{batch}-{number % fresh}").lora_int_id
                    )
                bench.probe.label("load", f"{kind} batch={batch}")
                bench.engine.reassign({requests[0]: name})
                for _ in range(2):
                    bench.engine.step()
        bench.probe.label("setup")
    bench.engine.forget_adapters()


def host_cache(bench: Bench, entries: int, counts: list[int], batch: int, num_steps: int) -> None:
    """Decode steps and activations with a large host cache: vLLM copies its list of entries once per adapter
    per step.

    The entries beyond the first share one adapter's tensors (LoRAModel.clone): what is copied is their list
    of ids.
    """
    manager = bench.engine.lora_manager._adapter_manager
    with decoding(bench, batch, 128) as requests:
        bench.engine.reassign(assignment(requests, bench.adapters(1)))
        bench.steps(1, "setup", "host cache")
        template = manager._registered_adapters.cache[
            bench.engine.store.request(bench.adapters(1)[0]).lora_int_id
        ]
        names = [f"cached-{entries}-{i}" for i in range(entries)]
        for name in names:
            number = bench.engine.store.request(name).lora_int_id
            manager._registered_adapters[number] = template.clone(number)
        for count in counts:
            used = names[: min(count, bench.max_loras, batch)]
            bench.engine.reassign(assignment(requests, used))
            bench.probe.label("activation", f"entries={entries} adapters={len(used)}")
            bench.engine.step()
            bench.engine.step()
            bench.steps(num_steps, "host_cache", f"entries={entries} adapters={len(used)}")
    bench.engine.forget_adapters()


def waiting(bench: Bench, queue: int, num_steps: int) -> None:
    """Decode steps with a long queue of requests that wait for a slot: the scheduler passes all of them each
    step.
    """
    count = bench.max_loras
    with decoding(bench, count, 128) as requests:
        bench.engine.reassign(assignment(requests, bench.adapters(count)))
        names = [bench.engine.add(f"waiting-{i}", 32, 1, f"other-{i}") for i in range(queue)]
        bench.steps(num_steps, "waiting", f"queue={queue}")
        bench.engine.abort(names)


def reference(bench: Bench) -> None:
    """The short host reference run: what a validation repeats to see how this machine differs from the
    calibration's.
    """
    with decoding(bench, 8, 128) as requests:
        # One slot is left for the adapters that come in below.
        bench.engine.reassign(assignment(requests, bench.adapters(max(1, min(4, bench.max_loras - 1)))))
        bench.steps(20, "reference", "decode")
        for number in range(10):
            bench.steps(0, "setup", "reference")
            bench.probe.label("reference", "eager")
            prefill(bench, f"reference-{number}", [600], bench.adapters(1))
        for number in range(8):
            bench.probe.label("reference", "swap")
            bench.engine.reassign({requests[0]: f"reference-{number}"})
            bench.engine.step()
            bench.engine.step()
        bench.probe.label("setup")
    bench.engine.forget_adapters()


SWAP_REFERENCE = "swap_reference"


def swap_reference(bench: Bench, count: int = 24, batch: int = 32) -> None:
    """More loads into a growing host cache and activations, beside a batch as in a workload.

    A load takes between 60 and 240 ms on one machine, so that the eight of `reference` say little.
    """
    bench.engine.release_pinned_memory()
    with decoding(bench, batch, 128) as requests:
        bench.probe.label(SWAP_REFERENCE)
        for number in range(count):
            bench.engine.reassign({requests[0]: f"{SWAP_REFERENCE}-{number}"})
            bench.engine.step()
            bench.engine.step()
        bench.probe.label("setup")
    bench.engine.forget_adapters()
