"""The ``lorasim`` command: help, one run, a sweep, the sweep's files."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.hydra import Hydra

import conf as conf_room
from sim import simulation
from sim.__main__ import main
from sim.config import EngineConfig, ModelConfig
from sim.serve_command import vllm_serve_command
from sim.sweep import callback as sweep
from sim.sweep import rows as sweep_rows

QUICK = ["profile=constant", "workload.duration_s=2", "workload.num_adapters=50", "engine.max_cpu_loras=64"]
ONE_BY_ONE = "sweep.processes=1"


def lorasim(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lorasim", *words])
    main()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_help_names_groups_examples_and_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        lorasim(monkeypatch, tmp_path, "--help", "profile=constant")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for part in ("workload: bursty, diurnal", "engine.max_loras=4,8,16,32,64", "Not modelled", "--cfg job"):
        assert part in text


def test_cfg_job_shows_the_configuration_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lorasim(monkeypatch, tmp_path, "--cfg", "job", "profile=constant", "engine.max_loras=7")
    assert "max_loras: 7" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_run_writes_results_and_shows_the_serve_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lorasim(monkeypatch, tmp_path, *QUICK, "engine.max_loras=16", "hydra.run.dir=out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.json", "requests.parquet"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "ok"
    assert summary["config"]["engine"]["max_loras"] == 16
    shown = capsys.readouterr().out
    assert summary["vllm_serve_command"] in shown
    assert "output_throughput" in shown


def test_python_m_sim_is_the_same_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sim", *QUICK, "hydra.run.dir=out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "summary.json").exists()


def test_sweep_has_a_row_per_job_and_a_failing_job_is_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["engine.max_loras=4,100,8", "workload=uniform,zipf", "hydra.sweep.dir=out"]
    lorasim(monkeypatch, tmp_path, "-m", *QUICK, ONE_BY_ONE, *words)
    rows = read_csv(tmp_path / "out" / "sweep.csv")
    jobs = [(row["engine.max_loras"], row["workload"], row["status"]) for row in rows]
    assert jobs == [
        ("4", "uniform", "ok"),
        ("4", "zipf", "ok"),
        ("100", "uniform", "error"),
        ("100", "zipf", "error"),
        ("8", "uniform", "ok"),
        ("8", "zipf", "ok"),
    ]
    for row in rows:
        summary = json.loads((tmp_path / "out" / row["path"] / "summary.json").read_text())
        if row["status"] == "ok":
            assert float(row["output_throughput"]) == summary["output_throughput"]
            assert float(row["time_share.compute"]) == summary["time_share"]["compute"]
        else:
            assert row["output_throughput"] == ""
            assert row["message"] == summary["message"] != ""
    shown = capsys.readouterr()
    assert "6/6" in shown.err
    assert "engine.max_cpu_loras" in shown.out


def test_what_does_not_fit_is_a_row_with_status_oom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks = "engine.num_gpu_blocks=10,2000"
    lorasim(monkeypatch, tmp_path, "-m", *QUICK, ONE_BY_ONE, blocks, "hydra.sweep.dir=out")
    rows = read_csv(tmp_path / "out" / "sweep.csv")
    assert [row["status"] for row in rows] == ["oom", "ok"]
    assert "GiB short" in rows[0]["message"]


def test_first_light_is_the_sweep_of_make_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["profile=constant", ONE_BY_ONE, "workload.duration_s=1", "warmup_s=0", "engine.max_loras=4,64"]
    lorasim(monkeypatch, tmp_path, "-m", "+experiment=first_light", *quick)
    rows = read_csv(tmp_path / "runs" / "first_light" / "sweep.csv")
    jobs = {(row["engine.max_loras"], row["workload"], row["status"]) for row in rows}
    assert jobs == {(size, shape, "ok") for size in ("4", "64") for shape in ("uniform", "zipf")}
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header == ["engine.max_loras", "workload", "status", "request_goodput", *sweep.TABLE_METRICS]


def test_a_sweep_warns_once_of_each_range_that_its_runs_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["engine.max_loras=4,8", "seed=0,1", "workload.duration_s=1", "engine.max_cpu_loras=64"]
    words.append(ONE_BY_ONE)
    lorasim(monkeypatch, tmp_path, "-m", *words, "hydra.sweep.dir=out")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["lorasim: warning: max_loras=4 is outside the measured 8 to 64"]


def test_a_run_and_a_sweep_name_what_is_without_effect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, "workload.request_rate=8"]
    said = (
        "lorasim: warning: workload.request_rate=8 is without effect: workload.mode=closed keeps "
        "workload.concurrency=64 requests in flight"
    )
    lorasim(monkeypatch, tmp_path, *words, "hydra.run.dir=out")
    assert capsys.readouterr().err.splitlines() == [said]
    lorasim(monkeypatch, tmp_path, "-m", *words, "seed=0,1", ONE_BY_ONE, "hydra.sweep.dir=sweep")
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [said]


def test_error_in_the_sweeps_own_files_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(rows: Any, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(sweep, "write_csv", full)
    words = ["-m", *QUICK, ONE_BY_ONE, "engine.max_loras=4,8", "hydra.sweep.dir=out"]
    with pytest.raises(SystemExit) as exit_:
        lorasim(monkeypatch, tmp_path, *words)
    assert exit_.value.code == 2
    assert "lorasim: error: out/sweep.csv: No space left on device\n" in capsys.readouterr().err


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(values: Any, out_dir: Path) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("sim.simulation.run", broken)
    with pytest.raises(KeyError, match="a bug"):
        lorasim(monkeypatch, tmp_path, *QUICK, "hydra.run.dir=out")
    assert not (tmp_path / "out").exists()


def test_a_bug_in_a_sweep_is_a_row_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate = simulation.simulate

    def broken(values: Any) -> Any:
        if values["seed"] == 1:
            raise KeyError("a bug")
        return simulate(values)

    monkeypatch.setattr("sim.simulation.simulate", broken)
    lorasim(monkeypatch, tmp_path, "-m", *QUICK, ONE_BY_ONE, "seed=0,1,2", "hydra.sweep.dir=out")
    rows = read_csv(tmp_path / "out" / "sweep.csv")
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["message"] == "KeyError: 'a bug' (see traceback.txt)"
    assert "in broken" in (tmp_path / "out" / "1" / "traceback.txt").read_text()
    assert "warning: 1 of 3 runs failed" in capsys.readouterr().err
    monkeypatch.setattr("sim.simulation.simulate", simulate)
    lorasim(monkeypatch, tmp_path, "-m", *QUICK, ONE_BY_ONE, "seed=0,1,2", "hydra.sweep.dir=out")
    assert {row["status"] for row in read_csv(tmp_path / "out" / "sweep.csv")} == {"ok"}
    assert not (tmp_path / "out" / "1" / "traceback.txt").exists()
    assert "2 of 3 runs were there already" in capsys.readouterr().err


def test_a_sweep_without_any_success_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        lorasim(monkeypatch, tmp_path, "-m", *QUICK, ONE_BY_ONE, "engine.max_loras=100,200")
    assert exit_.value.code == 2
    (file,) = tmp_path.rglob("sweep.csv")
    assert [row["status"] for row in read_csv(file)] == ["error", "error"]
    assert "no run succeeded; the first: engine.max_cpu_loras=64" in capsys.readouterr().err


def test_a_job_that_is_refused_is_a_row_of_its_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that is none, which JSON does not have either, and a file that is not there."""
    words = [*QUICK, ONE_BY_ONE, "hydra.sweep.dir=out", "eviction=chameleon"]
    words += ["eviction.size_weight=nan,-inf,-1,0.4", "eviction.recency_weight=0.1"]
    lorasim(monkeypatch, tmp_path, "-m", *words)
    rows = read_csv(tmp_path / "out/sweep.csv")
    assert [row["status"] for row in rows] == ["error", "error", "error", "ok"]
    assert [row["message"] for row in rows] == [
        "eviction.size_weight=nan: expected a finite number",
        "eviction.size_weight=-inf: expected a finite number",
        "eviction: policies.eviction.Chameleon: size_weight=-1: expected a number at least 0",
        "",
    ]
    assert (
        json.loads((tmp_path / "out/0/summary.json").read_text())["config"]["eviction"]["size_weight"]
        == "nan"
    )
    assert not list(tmp_path.rglob("traceback.txt"))
    assert "warning: 3 of 4 runs failed" in capsys.readouterr().err
    lorasim(monkeypatch, tmp_path, "-m", *words)
    assert "1 of 4 runs were there already" in capsys.readouterr().err


def test_a_trace_that_is_not_there_is_a_row_of_its_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "T.jsonl").write_text('{"timestamp": 0, "input_length": 5, "output_length": 5}\n')
    words = ["workload=trace", "workload.path=T.jsonl,nonsense.jsonl", "profile=constant", ONE_BY_ONE]
    lorasim(monkeypatch, tmp_path, "-m", *words, "hydra.sweep.dir=out")
    rows = read_csv(tmp_path / "out/sweep.csv")
    assert [row["message"] for row in rows] == ["", "nonsense.jsonl: No such file or directory"]
    assert [row["status"] for row in rows] == ["ok", "error"]


def test_write_csv_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    sweep_rows.write_csv([{"a": 1}, {"a": 2, "b": None}], path)
    assert path.read_text() == "a,b\n1,\n2,\n"

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sweep_rows.write_csv([{"a": Unprintable()}], path)
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.csv"]
    assert path.read_text() == "a,b\n1,\n2,\n"


MODEL = ModelConfig("org/base", 64, 128, 2, 4, 2, 16, 1000, 8192, False)


def test_serve_command_spells_out_capacity() -> None:
    assert vllm_serve_command(EngineConfig(max_loras=16), MODEL) == (
        "vllm serve org/base --dtype bfloat16 --enable-lora --max-loras 16 --max-cpu-loras 16"
        " --max-lora-rank 16 --max-num-seqs 256 --max-num-batched-tokens 8192 --max-model-len 8192"
        " --gpu-memory-utilization 0.9"
    )


def test_serve_command_has_the_graphs_that_are_off_default() -> None:
    engine = EngineConfig(cudagraph_mode="PIECEWISE", cudagraph_capture_sizes=[1, 8])
    assert vllm_serve_command(engine, MODEL).endswith(
        """ --compilation-config '{"cudagraph_mode": "PIECEWISE", "cudagraph_capture_sizes": [1, 8]}'"""
    )


def test_serve_command_has_what_is_off_default() -> None:
    engine = EngineConfig(
        max_cpu_loras=1000,
        block_size=32,
        num_gpu_blocks=2000,
        enable_prefix_caching=False,
        async_scheduling=False,
        scheduling_policy="priority",
        scheduler_reserve_full_isl=False,
        specialize_active_lora=True,
        enforce_eager=True,
        long_prefill_token_threshold=512,
        initial_host_cache=["a"],
        initial_slots=["a"],
    )
    assert vllm_serve_command(engine, MODEL).endswith(
        " --block-size 32 --num-gpu-blocks-override 2000 --long-prefill-token-threshold 512"
        " --scheduling-policy priority --no-enable-prefix-caching"
        " --no-async-scheduling --no-scheduler-reserve-full-isl --specialize-active-lora --enforce-eager"
    )


def test_experiments_alone_set_hydras_mode() -> None:
    """`sim.cli` asks for the mode only where one of them may be chosen."""
    conf = Path(conf_room.__file__).parent
    settings = {path: yaml.safe_load(path.read_text()) or {} for path in conf.rglob("*.yaml")}
    with_mode = [path for path, values in settings.items() if "mode" in values.get("hydra", {})]
    assert {path.parent.name for path in with_mode} == {"experiment"}


@pytest.mark.parametrize(
    ("words", "times"),
    [
        ([], 1),
        (["hydra.run.dir=out", "workload=bursty"], 1),
        (["hydra.mode=RUN"], 2),
        (["--config-dir", "."], 2),
    ],
)
def test_one_run_composes_its_configuration_once_unless_it_may_set_the_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], times: int
) -> None:
    composed = []
    compose = Hydra.compose_config

    def counted(self: Hydra, *args: Any, **more: Any) -> Any:
        composed.append(args)
        return compose(self, *args, **more)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    lorasim(monkeypatch, tmp_path, *QUICK, *words)
    assert len(composed) == times


def test_a_folder_of_the_users_may_set_the_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine" / "study").mkdir(parents=True)
    (tmp_path / "mine" / "study" / "seeds.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweep: {dir: out}}\n"
    )
    lorasim(monkeypatch, tmp_path, "--config-dir", "mine", "+study=seeds", *QUICK, ONE_BY_ONE, "seed=0,1")
    assert len(read_csv(tmp_path / "out" / "sweep.csv")) == 2
