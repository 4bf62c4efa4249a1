"""Where the parts of the bridge in one process find each other: vLLM makes each of them on its own."""

from typing import Any

from calibrate.bridge.names import AdapterNames
from calibrate.bridge.settings import PolicySettings
from sim.errors import UserError


class Bridge:
    """The policies' settings, and the worker's adapter manager and the scheduler that they apply to.

    With one GPU, vLLM runs both in the process of its engine core. The manager comes first.
    """

    def __init__(self) -> None:
        self.settings: PolicySettings | None = None
        self.names = AdapterNames()
        self._manager: Any = None
        self._scheduler: Any = None
        self._session: Any = None

    def manager_made(self, manager: Any) -> None:
        """The worker has an adapter manager (`PolicyWorkerLoRAManager`)."""
        self._manager = manager

    def scheduler_made(self, scheduler: Any) -> None:
        """The engine has a scheduler (`PolicyScheduler`); the policies come into force."""
        self.close()
        self._scheduler = scheduler
        if self.settings is not None:
            self.set_policy(self.settings)

    def set_policy(self, settings: PolicySettings | None, forget_adapters: bool = False) -> None:
        """Serve with these policies from now on; None: as plain vLLM does.

        The tiers keep their contents, or are emptied first. Raises UserError for bad settings, which leave
        everything else as it is, and while any request waits or runs.
        """
        from calibrate.bridge.session import Session

        scheduler, manager = self._scheduler, self._manager
        if scheduler is None:
            raise UserError(
                "no PolicyScheduler in this process: --scheduler-cls calibrate.bridge.PolicyScheduler"
            )
        if len(scheduler.requests):
            raise UserError(f"policies cannot change now: {len(scheduler.requests)} requests wait or run")
        if forget_adapters and manager is not None:
            manager.remove_all_adapters()
        if settings is None:
            self.close()
        else:
            scheduler.check_supported()
            if manager is None:
                raise UserError(
                    "vLLM did not load the plugin lorasim: install this package where vLLM is, "
                    "and name it in VLLM_PLUGINS where that is set"
                )
            session = Session(settings, scheduler.vllm_config, self.names, manager)
            self.close()
            self._session = session
            manager.use(session)
        scheduler.use(self._session)
        self.settings = settings

    def close(self) -> None:
        """End the policies in force, if any."""
        session, self._session = self._session, None
        if session is not None:
            self._manager.use(None)

    def shutdown(self) -> None:
        """End the policies in force, and the loader's process."""
        self.close()
        if self._manager is not None:
            self._manager.close()
        self._manager = self._scheduler = None


_BRIDGE = Bridge()


def bridge() -> Bridge:
    """Return this process's bridge."""
    return _BRIDGE
