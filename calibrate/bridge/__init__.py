"""The policies of `policies/`, unchanged, inside vLLM 0.25.1 on one GPU.

    pip install lorasim            # where vLLM is: its entry point of vllm.general_plugins does the rest
    LORASIM_POLICY=policy.yaml vllm serve MODEL --enable-lora --scheduler-cls calibrate.bridge.PolicyScheduler

`policy.yaml` has the sections of `settings.PolicySettings`, written as in `conf/`. Without LORASIM_POLICY
nothing of vLLM changes. In one process, `calibrate.engine.VllmEngine(..., bridged=True)` and its `set_policy`
switch policies between two runs of one engine.

What is where:

* `plugin`, `settings`, `runtime`, `session`: from the variable to the policy objects in force.
* `scheduler`, `waiting_queue`, `step_log`: vLLM's `AsyncScheduler` with an admission policy for its queues.
* `lora_managers`, `tier`: vLLM's slots and host cache with eviction policies for their LRU.
* `live_engine`, `live_request`, `costs`, `names`: what policies see.
* `guard`: a policy that fails makes way for vLLM's default, once and for all, and no request is lost.
* `adapter_file`, `adapter_check`: adapters that would kill vLLM's engine fail alone.
* `prefetcher`, `loader`, `loader_process`, `read_weights`, `shared_blocks`, `adopted_blocks`, `adopted_lora`,
  `pinning`: loads in a process of their own, straight into shared, page-locked memory.

What plain vLLM 0.25.1 does with a bad adapter, and what happens here. `_load_adapter` raises in the middle of
`execute_model` (LoRAAdapterNotFoundError where files are missing, SafetensorError, ValueError for the rank or
for unknown modules; RuntimeError from the copy of a wrong shape), EngineCore's loop ends, and with it every
request. Here a request is checked against its adapter's files when it arrives (configuration and header, no
weights, only where the host cache does not have it). What only a load can show is caught in the worker
manager: the step goes on with the adapter's tokens mapped to no adapter, and the scheduler ends the adapter's
requests with finish reason `error` before anything of that step is told, and drops their KV from the prefix
cache. `stop_reason` and the log say which adapter and why; vLLM's OpenAI server answers such a request with
status 500 and a text of its own. `/v1/load_lora_adapter` raises as in vLLM.

Not the same as plain vLLM, even with its own order and LRU: a request that waits for a grammar or for more
input joins the line when it is ready, where vLLM tries it before those that came earlier. Refused with an
error: tensor and pipeline parallelism, KV connectors, speculative decoding; with `prefetch`, mixture of
experts.

For a first session on a GPU, in this order (all else is tested without one, tests/conformance):

1. `VllmEngine(bridged=True)` starts: the mixin uses `PolicyWorkerLoRAManager`, dummy adapters of the warm-up
   leave both caches, CUDA graphs are captured as before, torch.compile's cache is hit by every policy.
2. `set_policy(None)` against an engine that is not bridged, then `set_policy({})` (`fcfs_skip`, `lru`)
   against `set_policy(None)`, same seed: same step plans, and throughput and host times within the
   run-to-run spread; but where many wait for adapters that do not fit in the step, `schedule` is quicker,
   since `fcfs_skip` does not look at each of them in each step.
3. Greedy outputs with `{}`, with another admission policy and with `prefetch`: equal token for token to
   plain vLLM's, as far as plain vLLM is equal to itself.
4. With `prefetch`: no warning about cudaHostRegister; `is_pinned()` of a view of `AdoptedBlocks.memory` (else
   `LoRAModel.from_lora_tensors` and `_create_merged_loras_inplace` copy each tensor: right, but slow); a
   block comes free after `copies_done`; page-locked memory is `max_cpu_loras` + 2 blocks.
5. Time of `PolicyWorkerLoRAManager.adopt` on the engine's thread (expected: a few ms, 448 views); of
   `activate_adapter` out of a block against out of vLLM's own pinned tensors; `Loaded.seconds`; steps while
   the loader works against steps while it does not.
6. A missing, a cut off and a too large adapter among good ones, through `vllm serve`.

Faster swaps, prepared and not yet done. A block is the data of the adapter's file in one piece, so:

a. `activate_adapter` can send it with one copy to a staging buffer on the GPU and deal it out there with
   `torch._foreach_copy_`, or call that once with all views, which runs without the GIL; instead of 448 calls
   of `copy_`, and as many that set a slot to zero (`reset_lora`), which is needed only where the slot's last
   rank was greater.
b. The views and the packed LoRALayerWeights of a block can be kept for the next adapter with the same header,
   so that `adopt` is a look-up.
c. Without prefetch, `_load_adapter` can call `read_weights.read_adapter` on the engine's own thread: one read
   from the page cache, and no parsing, converting and pinning of 448 tensors one by one.
d. `LRUCacheWorkerLoRAManager.add_adapter` copies the list of the whole host cache for each adapter of a step,
   where a look-up in `_registered_adapters` would do.
"""

from typing import Any

__all__ = ["PolicyScheduler"]


def __getattr__(name: str) -> Any:
    """Import vLLM only for who asks: `--scheduler-cls calibrate.bridge.PolicyScheduler`."""
    if name == "PolicyScheduler":
        from calibrate.bridge.scheduler import PolicyScheduler

        return PolicyScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
