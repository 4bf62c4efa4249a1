"""Policy objects from the sections of a configuration."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sim.errors import UserError


def policy(section: object, group: str) -> Any:
    """Make a new policy object of the class that ``_target_`` of a resolved section names.

    Raises UserError, which names the ``group``, for a section without one and for what the class refuses.
    """
    if not isinstance(section, Mapping) or "_target_" not in section:
        raise UserError(f"{group}: expected a mapping with _target_, got {section!r}")
    try:
        return instantiate(section)
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{group}: {section['_target_']}: {reason}") from error
