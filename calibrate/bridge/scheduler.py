"""vLLM's AsyncScheduler with our policies: `--scheduler-cls calibrate.bridge.PolicyScheduler`."""

import logging
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from calibrate.bridge.live_request import LiveRequest
from calibrate.bridge.runtime import bridge
from calibrate.bridge.session import LOGGER, Session
from calibrate.bridge.step_log import StepLog
from calibrate.bridge.waiting_queue import BlockedQueue, PolicyQueue
from sim.errors import UserError

logger = logging.getLogger(LOGGER)


class PolicyScheduler(AsyncScheduler):  # type: ignore[misc]
    """Asynchronous scheduling as in vLLM 0.25.1, with other waiting queues; `schedule` is vLLM's own.

    Without LORASIM_POLICY, or settings given to `calibrate.bridge.install`, it is vLLM's in everything.
    Raises UserError for what the bridge does not serve: several GPUs, KV connectors, speculative decoding.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._session: Session | None = None
        self._failed: list[tuple[int, EngineCoreOutput]] = []
        self._step = StepLog(self._num_places_taken, self.max_num_running_reqs, self.max_num_scheduled_tokens)
        bridge().scheduler_made(self)

    def check_supported(self) -> None:
        """Raise UserError for what the bridge does not serve."""
        if self.parallel_config.world_size > 1:
            raise UserError("calibrate.bridge serves one GPU: no tensor or pipeline parallelism")
        if self.lora_config is None:
            raise UserError("calibrate.bridge is about LoRA adapters: --enable-lora is missing")
        if self.connector is not None or self.ec_connector is not None:
            raise UserError("calibrate.bridge does not serve KV and encoder connectors")
        if self.num_spec_tokens > 0:
            raise UserError("calibrate.bridge does not serve speculative decoding")

    def use(self, session: Session | None) -> None:
        """Schedule with the policies of `session`; None: as vLLM. Nothing may be waiting or running."""
        self.kv_cache_manager.__dict__.pop("allocate_slots", None)
        self._session = session
        if session is None:
            self.waiting = create_request_queue(self.policy)
            self.skipped_waiting = create_request_queue(self.policy)
            return
        self.waiting = PolicyQueue(
            session.admission, session.engine, self._step, self._describe, self._is_running
        )
        self.skipped_waiting = BlockedQueue(on_block=self.waiting.leave)
        self.kv_cache_manager.allocate_slots = self._step.recording(self.kv_cache_manager.allocate_slots)
        session.attach(self.waiting)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Put a step together, with the requests that the policy offers."""
        session = self._session
        if session is None:
            return super().schedule(*args, **kwargs)
        self._fail_bad_adapters(session)
        self._unblock()
        session.before_step()
        self._step.begin_step()
        self.waiting.begin_step()
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            self.waiting.end_step()
        if not self.running and not self.waiting.offered_any and len(session.admission):
            session.admission.check_stuck()
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """Take over a step's results, but those of requests whose adapter was not there; tell who failed."""
        if self._session is not None:
            self._fail_bad_adapters(self._session)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)
        for client, output in self._failed:
            outputs.setdefault(client, EngineCoreOutputs(outputs=[])).outputs.append(output)
        self._failed = []
        return outputs

    def add_request(self, request: Request) -> None:
        """Take in a request; it fails at once where its adapter cannot be loaded."""
        super().add_request(request)
        if self._session is not None and request.lora_request is not None:
            problem = self._session.problem(request.lora_request)
            if problem is not None:
                self._fail([self.requests[request.request_id]], problem)

    def shutdown(self) -> None:
        """End what the policies have started."""
        bridge().shutdown()
        super().shutdown()

    def has_finished_requests(self) -> bool:
        """Whether somebody is still to be told of a request's end."""
        return bool(super().has_finished_requests() or self._failed)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> dict[str, Any] | None:
        if self._session is not None:
            self.waiting.leave(request)
        transfer: dict[str, Any] | None = super()._free_request(request, delay_free_blocks)
        return transfer

    def _num_places_taken(self) -> int:
        return len(self.running) + int(self.num_waiting_for_streaming_input)

    def _describe(self, request: Request) -> LiveRequest:
        assert self._session is not None
        return self._session.describe(request)

    @staticmethod
    def _is_running(request: Request) -> bool:
        return bool(request.status == RequestStatus.RUNNING)

    def _unblock(self) -> None:
        """Let requests whose grammar or input has come join those that wait for their turn."""
        blocked = list(iter(self.skipped_waiting))
        for request in blocked:
            still = self._is_blocked_waiting_status(request.status)
            if not still or self._try_promote_blocked_waiting_request(request):
                self.skipped_waiting.remove_requests([request])
                self.waiting.add_request(request)

    def _fail_bad_adapters(self, session: Session) -> None:
        """End the requests of adapters whose load has failed since the last call."""
        for key, problem in session.take_failed():
            requests = [
                request
                for request in self.requests.values()
                if request.lora_request is not None and session.names.key(request.lora_request) == key
            ]
            self._forget_kv(requests)
            self._fail(requests, problem)

    def _forget_kv(self, requests: Iterable[Request]) -> None:
        """Their last step ran without their adapter: nobody may find its KV in the prefix cache."""
        for request in requests:
            block_ids = self.kv_cache_manager.get_block_ids(request.request_id)
            self.kv_cache_manager.evict_blocks({number for group in block_ids for number in group})

    def _fail(self, requests: list[Request], problem: str) -> None:
        self.finish_requests([request.request_id for request in requests], RequestStatus.FINISHED_ERROR)
        for request in requests:
            name = request.lora_request.lora_name
            logger.error("Request %s fails: adapter %s: %s", request.request_id, name, problem)
            output = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=f"adapter {name}: {problem}",
                events=request.take_events(),
                trace_headers=request.trace_headers,
            )
            self._failed.append((request.client_index, output))
