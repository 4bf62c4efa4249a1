"""Whatever a user gets wrong is one line on standard error and exit status 2, and leaves no result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.__main__ import main
from tests.interruption import simulating
from tests.refusal import Refusal

# The arguments, and what the line must name.
BAD_ARGUMENTS = {
    "unknown flag": (["--nonsense"], "--nonsense"),
    "flags that exclude each other": (["--cfg", "job", "-m"], "--multirun"),
    "unknown key": (["engine.max_lora=3"], "accepted: max_loras, max_cpu_loras"),
    "unknown group or key": (["nonsense=3"], "accepted: seed, "),
    "unknown choice": (["workload=nonsense"], "accepted: bursty, diurnal, drift"),
    "unknown added key": (["+engine.nonsense=3"], "engine.nonsense"),
    "unknown added group": (["+nonsense.key=3"], "nonsense"),
    "no value": (["engine.max_loras"], "accepted: key=value"),
    "unclosed bracket": (["engine.max_loras=[1"], "engine.max_loras=[1"),
    "a sweep without -m": (["engine.max_loras=4,8"], "--multirun"),
    "unknown interpolation": (["seed=${nonsense}"], "seed: Interpolation key 'nonsense' not found"),
    "missing folder of configurations": (["--config-dir", "nonsense"], "nonsense"),
    "host cache below slots": (["engine.max_loras=8", "engine.max_cpu_loras=4"], "engine.max_cpu_loras=4"),
    "a step without time": (["profile.step_ms=1e-9"], "profile.step_ms=1e-09: must be at least 1e-06, which"),
    "a run of ages": (["workload.duration_s=1e300"], "workload.duration_s=1e+300: must be at most 1e+09"),
    "patience of ages": (["starvation_s=1e300"], "starvation_s=1e+300: must be at most 1e+09"),
    "arrivals at once": (
        ["workload.mode=open", "workload.request_rate=1e18"],
        "workload.request_rate=1e+18: expected 1e-06 to 1e+09",
    ),
    "arrivals in ages": (
        ["workload.mode=open", "workload.request_rate=1e-300"],
        "workload.request_rate=1e-300: expected 1e-06 to 1e+09",
    ),
    "negative rate": (["workload.mode=open", "workload.request_rate=-1"], "workload.request_rate=-1"),
    "open without a rate": (["workload.mode=open", "workload.request_rate=null"], "workload.request_rate"),
    "unknown mode": (["workload.mode=ajar"], "expected one of open, closed"),
    "no slots": (["engine.max_loras=0"], "engine.max_loras=0"),
    "half a slot": (["engine.max_loras=1.5"], "engine.max_loras=1.5"),
    "a word for a number": (["engine.max_num_seqs=many"], "engine.max_num_seqs"),
    "rank that vLLM refuses": (["engine.max_lora_rank=7"], "expected one of 1, 8, 16"),
    "adapter that never fits": (["workload.adapter_rank=64"], "workload.adapter_rank=64"),
    "fewer tokens than sequences": (["engine.max_num_batched_tokens=8"], "engine.max_num_batched_tokens=8"),
    "more than the GPU": (["engine.gpu_memory_utilization=1.5"], "engine.gpu_memory_utilization=1.5"),
    "prompt of no tokens": (["workload.input_length=0"], "workload.input_length=0"),
    "request longer than the model": (["workload.input_length=9000"], "engine.max_model_len=8192"),
    "trace without a file": (["workload=trace"], "workload.path is missing"),
    "trace that is not there": (["workload=trace", "workload.path=nonsense.jsonl"], "nonsense.jsonl"),
    "trace that is a folder": (["workload=trace", "workload.path=."], "directory"),
    "unknown arrivals": (["workload/arrivals=nonsense"], "accepted: diurnal, gamma, mmpp, poisson"),
    "no replicas": (["replicas=0"], "replicas=0"),
    "unknown routing": (["routing=nonsense"], "accepted: adapter_affinity"),
    "lengths of no kind": (
        ["workload.input_length={kind:nonsense}"],
        "workload.input_length.kind='nonsense'",
    ),
    "negative exponent": (["workload.popularity.exponent=-1"], "workload.popularity.exponent=-1"),
    "unknown popularity": (["workload.popularity.kind=nonsense"], "nonsense"),
    "weight that is no number": (
        ["eviction=chameleon", "eviction.size_weight=nan"],
        "eviction.size_weight=nan: expected a finite number",
    ),
    "infinite hold": (["+admission.odd={a:[1,{b:inf}]}"], "admission.odd.a.b=inf: expected a finite number"),
    "unknown objective": (
        ["objective.metric=foo"],
        "objective.metric='foo': expected one of duration_s, request_throughput, request_goodput",
    ),
    "resume that is no answer": (["sweep.resume=7"], "sweep.resume=7: expected bool"),
    "no processes": (["sweep.processes=0"], "sweep.processes=0: expected 1 or more, or -1 for as many as"),
    "negative seed": (["seed=-1"], "seed=-1"),
    "warm-up longer than the run": (["warmup_s=1000"], "warmup_s=1000"),
    "no end": (["workload.duration_s=null"], "workload.duration_s"),
    "does not fit": (["engine.num_gpu_blocks=10"], "GiB short"),
    "negative step": (["profile.step_ms=-1"], "profile.step_ms=-1"),
    "not a group": (["engine=null"], "engine"),
    "a value for a group": (["~engine", "+engine=3"], "engine"),
    "policy that is not there": (["admission._target_=nonsense.Policy"], "nonsense.Policy"),
    "folder that cannot be made": (["hydra.run.dir=/dev/null/out"], "/dev/null"),
}

BAD_PROFILES = {
    "truncated YAML": (b"kind: constant\nstep_ms: [1", "profile/mine.yaml, line 2"),
    "not text": (b"\xff\xfe\x00\x01\x80", "profile/mine.yaml"),
    "empty": (b"", "profile"),
    "text": (b"just a word", "profile"),
    "a list": (b"- 1\n- 2\n", "profile"),
    "a missing key": (b"kind: constant\n", "step_ms"),
    "an unknown kind": (b"kind: nonsense\n", "nonsense"),
    "an unknown key": (b"kind: constant\nstep_ms: 10\nnonsense: 1\n", "nonsense"),
}

# The lines of a trace, and what the message must name.
BAD_TRACES = {
    "empty": (b"", "T.jsonl: no requests in it"),
    "not JSON": (b"{\n", "T.jsonl, line 1: not JSON"),
    "zero length": (
        b'{"timestamp": 0, "input_length": 5, "output_length": 5}\n'
        b'{"timestamp": 1, "input_length": 0, "output_length": 5}\n',
        "T.jsonl, line 2: input_length=0",
    ),
    "time going back": (
        b'{"timestamp": 2, "input_length": 5, "output_length": 5}\n'
        b'{"timestamp": 1, "input_length": 5, "output_length": 5}\n',
        "T.jsonl, line 2: the time goes back",
    ),
    "bytes": (b"\x00\xff\xfe", "T.jsonl, line 1: not UTF-8"),
}


@pytest.mark.parametrize(("words", "named"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_argument(refusal: Refusal, words: list[str], named: str) -> None:
    assert named in refusal(["profile=constant", *words])


@pytest.mark.parametrize(("text", "named"), BAD_PROFILES.values(), ids=BAD_PROFILES)
def test_bad_profile(refusal: Refusal, tmp_path: Path, text: bytes, named: str) -> None:
    (tmp_path / "my_conf" / "profile").mkdir(parents=True)
    (tmp_path / "my_conf" / "profile" / "mine.yaml").write_bytes(text)
    assert named in refusal(["--config-dir", "my_conf", "profile=mine"])


@pytest.mark.parametrize(("content", "named"), BAD_TRACES.values(), ids=BAD_TRACES)
def test_bad_trace(refusal: Refusal, tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "T.jsonl").write_bytes(content)
    words = ["workload=trace", "workload.path=T.jsonl", "profile=constant"]
    assert named in refusal(words)


BAD_SWEEPS = {
    "no values": (["seed=range(0)"], "seed=range(0): has no value; expected one at least"),
    "no values beside some": (["seed=0,1", "replicas=range(3,1)"], "replicas=range(3,1): has no value"),
    "no processes": (["sweep.processes=0", "seed=0,1"], "sweep.processes=0: expected 1 or more, or -1"),
    "resume that is no answer": (["sweep.resume=7", "seed=0,1"], "sweep.resume=7: expected bool"),
    "unknown objective": (["objective.metric=foo", "seed=0,1"], "objective.metric='foo': expected one of "),
    "objectives": (
        ["objective.direction=up,maximize"],
        "objective.direction=up,maximize: is no part of a run; expected one value for a sweep",
    ),
    "no trials": (
        ["hydra/sweeper=tune", "hydra.sweeper.n_trials=0", "seed=choice(0,1)"],
        "hydra.sweeper.n_trials=0: must be greater than 0",
    ),
    "no trials at a time": (
        ["hydra/sweeper=tune", "hydra.sweeper.n_jobs=0", "seed=choice(0,1)"],
        "hydra.sweeper.n_jobs=0: expected 1 or more",
    ),
}


@pytest.mark.parametrize(("words", "named"), BAD_SWEEPS.values(), ids=BAD_SWEEPS)
def test_bad_sweep_is_refused_before_its_first_run(refusal: Refusal, words: list[str], named: str) -> None:
    assert named in refusal(["-m", "profile=constant", *words])


def test_bad_choice_in_a_sweep_is_refused_before_its_first_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lorasim", "-m", "profile=constant", "workload=zipf,nonsense"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "accepted: bursty, diurnal, drift" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_subprocess_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    words = ["profile=constant", "engine.max_loras=0"]
    done = subprocess.run(
        [sys.executable, "-m", "sim", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["hydra.run.dir=out"], ["hydra.sweep.dir=out", "seed=0,1", "-m"]])
def test_interrupted_run_leaves_no_result(tmp_path: Path, words: list[str]) -> None:
    long = ["profile=constant", "workload.duration_s=1e6", *words]
    with simulating(tmp_path, *long, text=True) as run:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    # CPython ends by the signal itself where it fell into an import; a shell shows 130 for both.
    assert run.returncode in (130, -signal.SIGINT)
    assert "lorasim: interrupted\n" in errors
    assert "Traceback" not in errors
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".parquet", ".csv")]


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = f"{sys.executable} -m sim --help profile=constant | true"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
