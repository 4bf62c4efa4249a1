"""Which policies the engine runs: a YAML file, named by an environment variable."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from policies.prefetch import NoPrefetch
from sim.errors import UserError
from sim.fields import plain_values
from sim.policy.objects import policy
from sim.policy.vllms_own import LRU, VLLM_QUEUE

ENVIRONMENT_VARIABLE = "LORASIM_POLICY"

NONE = "none"
VLLMS_SWAPS = "vllm"
SWAPS = (VLLMS_SWAPS, "one_piece")


def swaps_mode(policy: Mapping[str, Any] | None) -> str:
    """Return which of SWAPS a policy's sections ask for; None: plain vLLM."""
    return str((policy or {}).get("swaps", VLLMS_SWAPS))


@dataclass(frozen=True)
class PolicySettings:
    """The sections of the file, each in the `_target_` form of `conf/`; what is left out is vLLM's own.

    `eviction` is for the GPU slots, `host_eviction` for the host cache (null: as `eviction`). `prefetch` null
    or `none` leaves loads to the engine's own thread. `swaps` is how adapters come in: tensor by tensor, as
    vLLM does it, or in one piece (calibrate.bridge.slot_copies). `profile` is what policies believe things to
    cost: the name of a file of `conf/profile`, a path, or the settings themselves. A section may refer to
    `${engine.scheduling_policy}`, `${engine.max_loras}` and the engine's other settings (sim.config).
    """

    admission: Mapping[str, Any] | None = None
    eviction: Mapping[str, Any] | None = None
    host_eviction: Mapping[str, Any] | None = None
    prefetch: Mapping[str, Any] | str | None = None
    swaps: str = SWAPS[0]
    profile: Mapping[str, Any] | str = "constant"

    @classmethod
    def from_mapping(cls, values: Any, where: str = "policy") -> Self:
        """Check the names of the sections; raises UserError."""
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping of sections, got {values!r}")
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise UserError(f"{where}: unknown section {unknown[0]}; accepted: {', '.join(names)}")
        if values.get("swaps", SWAPS[0]) not in SWAPS:
            raise UserError(f"{where}: swaps: {values['swaps']}: none of {', '.join(SWAPS)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a file; raises UserError where there is none, or no policy in it."""
        try:
            return cls.from_mapping(yaml.safe_load(Path(path).read_text()), str(path))
        except OSError as error:
            raise UserError(f"{ENVIRONMENT_VARIABLE}={path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not YAML: {error}") from None

    @classmethod
    def from_environment(cls) -> Self | None:
        """Read the file that LORASIM_POLICY names; None where it is not set, or empty."""
        path = os.environ.get(ENVIRONMENT_VARIABLE)
        return cls.from_file(path) if path else None

    def make_admission(self, engine: Mapping[str, Any]) -> Any:
        """Build the admission policy; `engine` is what sections may refer to. Raises UserError."""
        return _make(self.admission or VLLM_QUEUE, "admission", engine)

    def make_eviction(self, engine: Mapping[str, Any]) -> Any:
        """Build the policy of the GPU slots."""
        return _make(self.eviction or LRU, "eviction", engine)

    def make_host_eviction(self, engine: Mapping[str, Any]) -> Any:
        """Build the policy of the host cache."""
        return _make(self.host_eviction or self.eviction or LRU, "host_eviction", engine)

    def make_prefetch(self, engine: Mapping[str, Any]) -> Any | None:
        """Build the prefetch policy, if there is one."""
        section = self.prefetch
        if (
            section is None
            or section == NONE
            or (isinstance(section, Mapping) and not section.get("_target_"))
        ):
            return None
        made = _make(section, "prefetch", engine)
        return None if isinstance(made, NoPrefetch) else made

    def profile_settings(self) -> Mapping[str, Any]:
        """Read the profile; raises UserError where there is no such file."""
        if isinstance(self.profile, Mapping):
            return self.profile
        folder = Path(next(iter(conf.__path__))) / "profile"
        named = folder / f"{self.profile}.yaml"
        path = named if named.exists() else Path(self.profile)
        if not path.is_file():
            accepted = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise UserError(f"profile: {self.profile}: neither a file nor one of {accepted}")
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, Mapping):
            raise UserError(f"profile: {path}: not a profile")
        return values


def _make(section: Any, name: str, engine: Mapping[str, Any]) -> Any:
    """Build the object that a section describes, with what it refers to filled in, as in the simulator."""
    try:
        values = plain_values(OmegaConf.create({"engine": dict(engine), "section": section}))
    except OmegaConfBaseException as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from None
    return policy(values["section"], name)
