"""Every admission policy of conf/admission keeps to the protocol."""

import os
import random
import subprocess
import sys
from importlib.resources import files

import policies.admission
from policies.admission import AdmissionPolicy, AdmissionView, WaitingRequest
from tests.policies.admission_conformance import AdmissionConformance, World, make_policy


class TestFcfsSkip(AdmissionConformance, name="fcfs_skip"):
    pass


class TestPriority(AdmissionConformance, name="priority"):
    pass


class TestVllm(AdmissionConformance, name="vllm"):
    pass


class TestFcfsStrict(AdmissionConformance, name="fcfs_strict"):
    pass


class TestVllm085(AdmissionConformance, name="vllm_0_8_5"):
    pass


class TestTimeSlice(AdmissionConformance, name="time_slice"):
    pass


class TestTimeSliceOfOneAdapter(
    AdmissionConformance,
    name="time_slice",
    group_size=1,
    min_active_secs=1,
    min_quantum_ms=3000,
    request_timeout_secs=5,
):
    pass


class TestAdapterCycle(AdmissionConformance, name="adapter_cycle"):
    pass


class TestDrain(AdmissionConformance, name="drain"):
    pass


class TestDrainAtOnce(AdmissionConformance, name="drain", max_wait_s=0):
    pass


class TestWorkingSet(AdmissionConformance, name="working_set"):
    pass


class TestWorkingSetOfAnInstant(AdmissionConformance, name="working_set", window_s=0.3, max_wait_s=0.2):
    pass


class TestWeightedSize(AdmissionConformance, name="weighted_size"):
    pass


class TestWeightedSizeWithQueues(
    AdmissionConformance, name="weighted_size", first_reqs=4, refresh_s=3, history_reqs=10
):
    pass


class TestFair(AdmissionConformance, name="fair"):
    pass


class TestFairStrictly(AdmissionConformance, name="fair", max_lead_tokens=0, history_reqs=1):
    pass


class TestCredit(AdmissionConformance, name="credit"):
    pass


class TestCreditOfOneOvertaking(AdmissionConformance, name="credit", overtakings_per_step=0):
    pass


class TestAmortize(AdmissionConformance, name="amortize"):
    pass


class TestAmortizeThatIsSoonLate(AdmissionConformance, name="amortize", ttft_ms=10, max_wait_s=2):
    pass


TESTED = {subclass.name for subclass in AdmissionConformance.__subclasses__()}


def test_every_policy_has_a_configuration_and_is_tested() -> None:
    configured = {file.name.removesuffix(".yaml") for file in files("conf.admission").iterdir()}
    assert configured == TESTED


def test_every_configured_class_is_exported() -> None:
    classes = {type(make_policy(name)) for name in TESTED}
    exported = {getattr(policies.admission, name) for name in policies.admission.__all__}
    protocol = {AdmissionPolicy, AdmissionView, WaitingRequest}
    assert classes == {one for one in exported if isinstance(one, type)} - protocol


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
    program = "from tests.policies.test_admission_conformance import print_logs; print_logs()"
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
