"""The policy file of the bridge: what it accepts, what it makes, what it refuses."""

import importlib.metadata
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from calibrate.bridge.plugin import register
from calibrate.bridge.settings import ENVIRONMENT_VARIABLE, PolicySettings
from policies.admission import FcfsSkip, Priority
from policies.eviction import Lru
from sim.config import EngineConfig
from sim.errors import UserError

ENGINE = asdict(EngineConfig(scheduling_policy="priority", num_gpu_blocks=10))


def test_an_empty_file_is_vllms_own_policies() -> None:
    settings = PolicySettings.from_mapping({})
    assert isinstance(settings.make_admission(ENGINE), Priority), "which follows --scheduling-policy"
    assert isinstance(settings.make_eviction(ENGINE), Lru)
    assert isinstance(settings.make_host_eviction(ENGINE), Lru)
    assert settings.make_prefetch(ENGINE) is None
    assert settings.profile_settings()["kind"] == "constant"


def test_sections_are_the_files_of_conf(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    admission = Path("conf/admission/fcfs_skip.yaml").read_text()
    path.write_text(f"admission: {{{admission.strip()}}}\nprefetch: none\nprofile: h100_llama_3_1_8b\n")
    settings = PolicySettings.from_file(path)
    assert isinstance(settings.make_admission(ENGINE), FcfsSkip)
    assert settings.make_prefetch(ENGINE) is None
    assert settings.profile_settings()["name"] == "h100_llama_3_1_8b"


@pytest.mark.parametrize(
    "text,message",
    [
        ("- a list", "expected a mapping"),
        ("admision: {}", "unknown section admision; accepted: admission, eviction"),
        ("a: [", "not YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        PolicySettings.from_file(path)


@pytest.mark.parametrize(
    "section,message",
    [
        ("Lru", "eviction: expected a mapping with _target_"),
        ({"_target_": "policies.eviction.Nobody"}, "eviction: policies.eviction.Nobody"),
        ({"_target_": "policies.eviction.Lru", "size": 1}, "eviction: policies.eviction.Lru"),
        ({"_target_": "policies.eviction.Lru", "size": "${engine.nothing}"}, "engine.nothing"),
    ],
)
def test_bad_sections(section: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PolicySettings.from_mapping({"eviction": section}).make_eviction(ENGINE)


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"neither a file nor one of .*constant, h100_llama_3_1_8b"):
        PolicySettings.from_mapping({"profile": "h999"}).profile_settings()


def test_without_the_variable_vllm_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    register()  # It would need vLLM.


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "/nowhere/policy.yaml")
    with pytest.raises(UserError, match=r"LORASIM_POLICY=/nowhere/policy\.yaml: No such file"):
        register()


def test_the_entry_point_names_the_plugin() -> None:
    points = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]
    (name, value), group = *points["vllm.general_plugins"].items(), "vllm.general_plugins"
    assert importlib.metadata.EntryPoint(name, value, group).load() is register
