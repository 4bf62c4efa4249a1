"""vLLM's own classes with our policies in them: calibrate.bridge, with the worker and the files made up."""
# ruff: noqa: PLC0415 - vLLM is imported where it is used, so that the tests are collected, and skipped, without it.

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from sim.config import EngineConfig
from tests.conformance.vllm_scheduler import TheirScheduler


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
        from calibrate.bridge.runtime import bridge
        from calibrate.bridge.settings import PolicySettings

        bridge().settings = None if settings is None else PolicySettings.from_mapping(settings)
        bridge().manager_made(SimpleNamespace(use=lambda session: None, close=lambda: None))
        super().__init__(config, vllm_config, v2_model_runner)

    @staticmethod
    def scheduler_class(config: EngineConfig) -> Any:
        from calibrate.bridge import PolicyScheduler

        return PolicyScheduler
