"""Do adapters answer in mixed batches as they do alone? `python -m calibrate.parity`.

Greedy answers to the same prompts, through a server: each adapter's alone, then all adapters' in one stream,
then each adapter's alone once more, which says how repeatable the engine is by itself.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from calibrate.bench import names
from calibrate.bench.client import Connection, OpenAIClient
from calibrate.bench.dataset import DatasetLine, read_dataset
from calibrate.bench.load import LoadRun, Plan, PlannedRequest
from calibrate.bench.plan import prompt_body
from calibrate.bench.prompts import prompts_of
from calibrate.bench.record import COMPLETED, RequestRecord
from calibrate.parity_gate import Passes, differing, normal, parities, table
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import build, plain_values
from sim.files import check_folder, write_atomically
from sim.results import to_json
from sim.workload import RequestSpec
from sim.workload.streams import stream

SINGLE, MIXED, AGAIN = "single", "mixed", "again"


@dataclass(frozen=True)
class ParityConfig:
    """`conf/parity.yaml`; see there."""

    endpoint: str
    api: str = "completions"
    api_key: str | None = None
    adapters: list[str] | None = None
    check_models: bool = True
    dataset: str | None = None
    num_prompts: int = 200
    input_length: int = 64
    max_tokens: int = 64
    concurrency: int = 16
    compare: str = "text"
    gate_pct: float = 0.5
    cache_salt: bool = True
    extra_body: Mapping[str, Any] | None = None
    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    out: str = "results"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_prompts", "input_length", "max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.gate_pct <= 100:
            raise UserError(f"gate_pct={self.gate_pct}: expected 0 to 100")
        normal("", self.compare)

    @property
    def connection(self) -> Connection:
        """Where the server is; answers are not streamed."""
        return Connection(
            self.endpoint, self.api, self.api_key, False, self.timeout_s, self.connect_timeout_s
        )


@dataclass(frozen=True)
class Question:
    """One prompt for one adapter."""

    adapter: str
    prompt: str
    """Its name: the same for every adapter that is asked it."""
    body: Mapping[str, Any]


class Interview:
    """Asks the questions in passes, with `concurrency` in flight."""

    def __init__(self, client: OpenAIClient, config: ParityConfig, stop: asyncio.Event) -> None:
        self.client, self.config, self.stop = client, config, stop
        self._salt = time.time_ns()
        self._said: set[str] = set()

    async def ask(self, name: str, questions: Sequence[Question], progress: Any) -> dict[Any, str | None]:
        """Return the answers to one stream of questions; None for those that failed."""
        asked = [(question.adapter, question.prompt) for question in questions]
        requests = [
            PlannedRequest(str(number), question.adapter, self._body(name, question))
            for number, question in enumerate(questions)
        ]

        def on_end(record: RequestRecord) -> None:
            progress.update()
            said = f"{record.adapter}: {record.status}: {record.message}"
            if record.is_failed and said not in self._said:
                self._said.add(said)
                tqdm.write(f"calibrate.parity: {said}", sys.stderr)

        plan = Plan(name, iter(requests), self.config.concurrency)
        run = await LoadRun(self.client, plan, self.stop, on_end=on_end).run()
        if self.stop.is_set():
            raise KeyboardInterrupt
        return {asked[int(record.request_id)]: self._answer(record) for record in run.records}

    def _answer(self, record: RequestRecord) -> str | None:
        return normal(record.text, self.config.compare) if record.status == COMPLETED else None

    def _body(self, name: str, question: Question) -> dict[str, Any]:
        # Each pass has a prefix cache of its own, so that none finds another's prompts cached.
        salt = {"cache_salt": f"{name}-{self._salt}"} if self.config.cache_salt else {}
        options = {"max_tokens": self.config.max_tokens, "temperature": 0, "seed": self.config.seed}
        return {
            "model": question.adapter,
            **options,
            **question.body,
            **salt,
            **(self.config.extra_body or {}),
        }


def main() -> None:
    """Run the command with the arguments in `sys.argv`."""
    hydra_entry(task, "parity", "calibrate.parity")


def task(cfg: DictConfig) -> None:
    """Ask, compare, write `parity_<time>.json`, print the table; exit status 1 if the gate is not passed."""
    values = plain_values(cfg)
    config = build(ParityConfig, values, "")
    date = datetime.now().astimezone()
    passes = asyncio.run(interview(config))
    rows = parities(passes, config.gate_pct)
    passed = all(row.passed for row in rows)
    content = {
        "date": date.isoformat(timespec="seconds"),
        "passed": passed,
        "gate_pct": config.gate_pct,
        "adapters": [
            asdict(row) | {"difference_pct": row.difference_pct, "passed": row.passed} for row in rows
        ],
        "differing": differing(passes),
        "config": values | {"api_key": None},
    }
    path = Path(config.out) / f"parity_{date:%Y%m%d_%H%M%S}.json"
    write_atomically(path, to_json(content).encode())
    print(f"{table(rows)}\n\n{path}")
    if not passed:
        sys.exit(1)


async def interview(config: ParityConfig) -> Passes:
    """Return the answers of the single-adapter batches, of their repetition, and of the mixed batches.

    Raises UserError, OSError; KeyboardInterrupt when it is interrupted, as half a gate is none.
    """
    stop = asyncio.Event()
    async with OpenAIClient(config.connection, keep_text=True) as client:
        served = await client.models() if config.check_models or config.adapters is None else None
        listed = [model.name for model in served or () if model.parent is not None]
        questions = make_questions(config, config.adapters or listed)
        adapters = list(dict.fromkeys(question.adapter for question in questions))
        if config.check_models:
            names.refuse_unknown(adapters, served)
        check_folder(Path(config.out))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        interviewer = Interview(client, config, stop)
        groups = [[q for q in questions if q.adapter == adapter] for adapter in adapters]
        order = stream(config.seed, "mixed").permutation(len(questions))
        answers: dict[str, dict[Any, str | None]] = {SINGLE: {}, MIXED: {}, AGAIN: {}}
        with tqdm(total=3 * len(questions), unit="req", desc="asking", leave=False) as progress:
            for name in answers:
                batches = [[questions[index] for index in order]] if name == MIXED else groups
                for batch in batches:
                    answers[name] |= await interviewer.ask(name, batch, progress)
    return Passes(answers[SINGLE], answers[AGAIN], answers[MIXED])


def make_questions(config: ParityConfig, adapters: Sequence[str]) -> list[Question]:
    """Return the questions: a dataset line that names no adapter, and a made-up prompt, is for all of them.

    Raises UserError and OSError.
    """
    lines = read_dataset(config.dataset) if config.dataset else []
    if not adapters and not (lines and all(line.adapter for line in lines)):
        raise UserError("adapters: the server lists none and none are given; expected adapters=[name, ...]")
    prompts: list[tuple[str, DatasetLine | None]] = [
        (f"line-{number}", line) for number, line in enumerate(lines, start=1)
    ] or [(f"prompt-{number:04d}", None) for number in range(config.num_prompts)]
    return [
        Question(adapter, name, _question_body(config, name, line))
        for name, line in prompts
        for adapter in ([line.adapter] if line is not None and line.adapter else adapters)
    ]


def _question_body(config: ParityConfig, name: str, line: DatasetLine | None) -> dict[str, Any]:
    if line is None:
        spec = RequestSpec(name, 0, None, config.input_length, config.max_tokens)
        return prompt_body(config.api, prompts_of(None, config.api)(spec, config.seed, "parity", 1), None)
    if config.api == "completions" and line.prompt is None:
        raise UserError(f"dataset={config.dataset}: has messages; expected api=chat, or prompts")
    own = {} if line.max_tokens is None else {"max_tokens": line.max_tokens}
    return prompt_body(config.api, None, line) | own


if __name__ == "__main__":
    main()
