"""Every admission policy of conf/admission keeps to the protocol."""

import os
import random
import subprocess
import sys
from importlib.resources import files

import policies.admission
from tests.admission_conformance import AdmissionConformance, World, make_policy


class TestFcfsSkip(AdmissionConformance):
    name = "fcfs_skip"


class TestPriority(AdmissionConformance):
    name = "priority"


class TestVllm(AdmissionConformance):
    name = "vllm"


class TestFcfsStrict(AdmissionConformance):
    name = "fcfs_strict"


class TestTimeSlice(AdmissionConformance):
    name = "time_slice"


class TestTimeSliceOfOneAdapter(AdmissionConformance):
    name = "time_slice"
    parameters = {"group_size": 1, "min_active_secs": 1, "min_quantum_ms": 3000, "request_timeout_secs": 5}


class TestAdapterCycle(AdmissionConformance):
    name = "adapter_cycle"


class TestDrain(AdmissionConformance):
    name = "drain"


class TestDrainAtOnce(AdmissionConformance):
    name = "drain"
    parameters = {"max_wait_s": 0}


class TestWorkingSet(AdmissionConformance):
    name = "working_set"


class TestWorkingSetOfAnInstant(AdmissionConformance):
    name = "working_set"
    parameters = {"window_s": 0.3, "max_wait_s": 0.2}


class TestWeightedSize(AdmissionConformance):
    name = "weighted_size"


class TestWeightedSizeWithQueues(AdmissionConformance):
    name = "weighted_size"
    parameters = {"first_reqs": 4, "refresh_s": 3, "history_reqs": 10}


class TestFair(AdmissionConformance):
    name = "fair"


class TestFairStrictly(AdmissionConformance):
    name = "fair"
    parameters = {"max_lead_tokens": 0, "history_reqs": 1}


class TestCredit(AdmissionConformance):
    name = "credit"


class TestCreditOfOneOvertaking(AdmissionConformance):
    name = "credit"
    parameters = {"overtakings_per_step": 0}


TESTED = {subclass.name for subclass in AdmissionConformance.__subclasses__()}


def test_every_policy_has_a_configuration_and_is_tested() -> None:
    configured = {file.name.removesuffix(".yaml") for file in files("conf.admission").iterdir()}
    assert TESTED == configured


def test_every_configured_class_is_exported() -> None:
    classes = {type(make_policy(name)) for name in TESTED}
    exported = {getattr(policies.admission, name) for name in policies.admission.__all__}
    protocol = {policies.admission.AdmissionPolicy, policies.admission.AdmissionView}
    assert classes == {it for it in exported if isinstance(it, type)} - protocol - {
        policies.admission.WaitingRequest
    }


def print_logs() -> None:
    """For all policies, what they admit in one long random case."""
    for name in sorted(TESTED):
        rng = random.Random(0)
        world = World(make_policy(name))
        kinds = ["arrive", "arrive", "step", "wait", "finish", "preempt", "abort"]
        for _ in range(200):
            world.do((rng.choice(kinds), rng.randint(0, 9), rng.randint(1, 9)))
        print(name, world.log)


def test_the_order_of_sets_of_names_does_not_matter() -> None:
    program = "from tests.test_admission_conformance import print_logs; print_logs()"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert first and first == second
