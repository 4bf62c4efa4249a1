"""Policy objects from the sections of a configuration."""

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from policies.admission import AdmissionPolicy
from policies.eviction import EvictionPolicy
from policies.prefetch import PrefetchPolicy
from policies.routing import RoutingPolicy
from sim.errors import UserError

PROTOCOLS: Mapping[str, type] = {
    "admission": AdmissionPolicy,
    "eviction": EvictionPolicy,
    "host_eviction": EvictionPolicy,
    "prefetch": PrefetchPolicy,
    "routing": RoutingPolicy,
}


def policy(section: object, group: str) -> Any:
    """Make a new policy object of the class that ``_target_`` of a resolved section names.

    Raises UserError, which names the ``group``, for a section without one, for what the class refuses, and
    for an object that is no such policy.
    """
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise UserError(f"{group}: expected a mapping with _target_, got {section!r}")
    where = f"{group}: {section['_target_']}"
    try:
        made = instantiate(section)
    except InstantiationException as error:
        raise UserError(f"{where}: {' '.join(str(error.__cause__ or error).split())}") from error
    except SystemExit as error:
        raise UserError(f"{where}: raised SystemExit: {error}") from error
    missing = [name for name in _methods(PROTOCOLS[group]) if not callable(getattr(made, name, None))]
    if missing:
        kind = PROTOCOLS[group].__name__
        raise UserError(f"{where}: has no {', '.join(missing)}; expected the methods of {kind}")
    return made


def _methods(protocol: type) -> list[str]:
    """Return the names of the methods that a policy must have."""
    return [name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if not name.startswith("_")]
