"""The entry point of `vllm.general_plugins`, called in each of vLLM's processes before there is a model."""

from calibrate.bridge.runtime import bridge
from calibrate.bridge.settings import ENVIRONMENT_VARIABLE, PolicySettings
from sim.errors import UserError

VLLM_VERSION = "0.25.1"


def register() -> None:
    """Put the bridge in place where LORASIM_POLICY is set; else vLLM stays as it is. Raises UserError."""
    settings = PolicySettings.from_environment()
    if settings is not None:
        install(settings)


def install(settings: PolicySettings | None = None) -> None:
    """Make engines of this process that are started from now on follow `settings`.

    None: they start as plain vLLM, and `Bridge.set_policy` may change that. Raises UserError for another
    vLLM, whose insides may be others.
    """
    import vllm
    from vllm.v1.worker import lora_model_runner_mixin as where_model_runners_look

    from calibrate.bridge.lora_managers import PolicyWorkerLoRAManager

    if vllm.__version__.split("+")[0] != VLLM_VERSION:
        raise UserError(
            f"calibrate.bridge knows vLLM {VLLM_VERSION}, and this is {vllm.__version__}; "
            f"unset {ENVIRONMENT_VARIABLE} to run without it"
        )
    bridge().settings = settings
    where_model_runners_look.LRUCacheWorkerLoRAManager = PolicyWorkerLoRAManager
