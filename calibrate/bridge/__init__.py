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
* `slot_copies`: with `swaps: one_piece`, a slot filled by one copy out of that memory.
* `worker_extension`: other policies in a server that goes on running.

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

Seen on an H100 (reports/published/h100/README.md): an engine with the bridge serves as plain vLLM does,
without policies and with `fcfs_skip` and `lru`; bringing adapters in takes a tenth of the engine's thread, or
less; a missing, a cut off and a too large adapter through `vllm serve` fail alone, 24 of 24 other requests
are answered; `SwitchPolicies` made plain vLLM of the server that had served with policies (conf/served.yaml).
"""

from typing import Any

__all__ = ["PolicyScheduler"]


def __getattr__(name: str) -> Any:
    """Import vLLM only for who asks: `--scheduler-cls calibrate.bridge.PolicyScheduler`."""
    if name == "PolicyScheduler":
        from calibrate.bridge.scheduler import PolicyScheduler

        return PolicyScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
