"""vLLM's own classes with our policies in them: calibrate.bridge, with the worker and the files made up."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from calibrate.bridge.names import AdapterNames
from calibrate.bridge.runtime import bridge
from calibrate.bridge.session import Session
from calibrate.bridge.settings import PolicySettings
from sim.config import EngineConfig
from tests.conformance.tiers import TiersCase
from tests.conformance.vllm_scheduler import TheirScheduler, configured
from tests.conformance.vllm_tiers import TheirTiers


class BridgedScheduler(TheirScheduler):
    """PolicyScheduler with the policies of `settings`; its adapters are never looked at."""

    lora_path = "hub/adapter"

    def __init__(
        self,
        config: EngineConfig,
        vllm_config: Any,
        settings: Mapping[str, Any] | None,
        v2_model_runner: bool = True,
    ) -> None:
        bridge().settings = None if settings is None else PolicySettings.from_mapping(settings)
        bridge().manager_made(
            SimpleNamespace(use=lambda session: None, close=lambda: None, adapter_bytes=lambda: 0)
        )
        super().__init__(config, vllm_config, v2_model_runner)

    @staticmethod
    def scheduler_class(config: EngineConfig) -> Any:
        from calibrate.bridge import PolicyScheduler

        return PolicyScheduler


class BridgedTiers(TheirTiers):
    """PolicyWorkerLoRAManager and PolicyLoRAModelManager with the policies of `settings`."""

    def __init__(self, case: TiersCase, vllm_config: Any, settings: Mapping[str, Any] | None) -> None:
        super().__init__(case)
        self.session: Session | None = None
        if settings is not None:
            engine = EngineConfig(
                max_loras=case.max_loras, max_cpu_loras=case.max_cpu_loras, num_gpu_blocks=9
            )
            policies = PolicySettings.from_mapping(settings)
            bridge().names = AdapterNames()
            self.session = Session(policies, configured(vllm_config, engine), bridge().names, self.worker)
        self.worker.use(self.session)
        leave = self.models._registered_adapters.deactivate_fn
        self.models._registered_adapters.deactivate_fn = lambda lora_id: (
            self.events.append(["evict_host", self.names[lora_id], None]),
            leave(lora_id),
        )

    @staticmethod
    def worker_class() -> Any:
        from calibrate.bridge.lora_managers import PolicyWorkerLoRAManager

        class WithoutDisk(PolicyWorkerLoRAManager, TheirTiers.worker_class()):  # type: ignore[misc]
            pass

        return WithoutDisk
