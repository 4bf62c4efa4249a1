"""``lorasim-serve``, also ``python -m sim.serve``: the simulated engine behind HTTP."""

import sys
from contextlib import suppress

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values

PROG = "lorasim-serve"


def main() -> None:
    """Run ``lorasim-serve`` with the arguments in ``sys.argv``."""
    hydra_entry(serve_job, "serve", PROG)


def serve_job(config: DictConfig) -> None:
    """Serve ``config`` until a signal comes. Raises UserError."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("--multirun: a server has one configuration; start several")
    # Here and not above, so that --help, a typo and shell completion are answered at once.
    try:
        from sim.serve.app import make_app  # noqa: PLC0415
        from sim.serve.backend import Backend  # noqa: PLC0415
        from sim.serve.config import ServeConfig  # noqa: PLC0415
        from sim.serve.server import Server, allow_many_connections, listen, url  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("sim.", "policies")):
            raise
        raise UserError(f"{error.name} is not installed; install lorasim[serve]") from error

    backend = Backend(ServeConfig.from_mapping(plain_values(config)))
    server = Server(make_app(backend), backend)
    allow_many_connections()
    with listen(backend.config.serve) as listening:
        warnings = [*backend.config.engine.refused_by_vllm(), *backend.outside_range()]
        _announce(backend.config.model_name, url(listening), warnings)
        with suppress(KeyboardInterrupt):  # The way to stop it, which has been seen to.
            server.run([listening])


def _announce(model: str, address: str, warnings: list[str]) -> None:
    """Say where the server is. On standard error, as servers do."""
    for warning in warnings:
        print(f"{PROG}: warning: {warning}", file=sys.stderr)
    print(f"{PROG}: simulating {model} at {address} (Ctrl-C stops)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
