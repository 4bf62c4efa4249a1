"""Other policies in a server that goes on running.

    VLLM_SERVER_DEV_MODE=1 LORASIM_POLICY=policy.yaml vllm serve ... \\
        --scheduler-cls calibrate.bridge.PolicyScheduler \\
        --worker-extension-cls calibrate.bridge.worker_extension.SwitchPolicies
    curl localhost:8000/collective_rpc -d '{"method": "switch_policies", "args": ["other.yaml"]}'

vLLM offers that path in its development mode alone, to whoever can reach the port.
"""

from calibrate.bridge.runtime import bridge
from calibrate.bridge.settings import PolicySettings


class SwitchPolicies:
    """Given to vLLM's worker, which runs in the process of its engine core."""

    def switch_policies(self, path: str = "") -> None:
        """Serve with the policies of the file `path` from now on, from empty caches; empty: as plain vLLM.

        Raises UserError for a bad file, and while any request waits or runs.
        """
        settings = PolicySettings.from_file(path) if path else None
        bridge().set_policy(settings, forget_adapters=True)
