"""The answer of a plan: the cheapest setting that meets its targets, as data and in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim.errors import UserError
from sim.plan.targets import Target
from sim.plan.trials import Trial
from sim.prices import Prices
from sim.results import POLICY_FILE
from sim.tables import aligned, cell


def answer_of(
    found: tuple[int, list[Trial]] | None,
    trials: Sequence[Trial],
    targets: Sequence[Target],
    prices: Prices,
) -> dict[str, Any]:
    """Return ``plan.json``: the cheapest setting that meets the targets, or the nearest one.

    Raises UserError where no setting could be tried, for want of anything but memory.
    """
    good = found[1] if found else [trial for trial in trials if trial.status == "ok"]
    best = max(good, key=lambda trial: trial.margin, default=None)
    answer: dict[str, Any] = {
        "met": found is not None,
        "num_tried": len(trials),
        "num_out_of_memory": sum(trial.status == "oom" for trial in trials),
        "failed": [f"{trial.setting}: {trial.message}" for trial in trials if trial.status == "error"],
        "prices": {"source": prices.source, "date": prices.date},
    }
    if best is None:
        _refuse_if_failed(trials)
        first = trials[0]
        return answer | {"chosen": None, "message": f"{first.setting}: {first.message}"}
    gpu = best.setting.values["profile"].get("provenance", {}).get("gpu")
    price = prices.of(gpu)
    chosen = {
        "setting": str(best.setting),
        "replicas": best.replicas,
        "vllm_serve_command": best.serve_command,
        "plain_vllm": best.policies is None,
        "policies": best.policies,
        "targets": [
            {
                "name": target.name,
                "limit_ms": target.limit_ms,
                "reached_ms": _finite(best.reached_ms[target.name]),
                "margin": _finite(best.margins[target.name]),
            }
            for target in targets
        ],
        "gpu": gpu,
        "usd_per_gpu_hour": price,
        "usd_per_hour": None if price is None else price * best.replicas,
        "outside_range": best.warnings,
    }
    return answer | {"chosen": chosen}


def _refuse_if_failed(trials: Sequence[Trial]) -> None:
    failed = [trial for trial in trials if trial.status == "error"]
    if failed:
        same = len({trial.message for trial in trials}) == 1
        where = "" if same else f"no setting could be tried; the first that failed: {failed[0].setting}: "
        raise UserError(f"{where}{failed[0].message}")


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def in_words(answer: Mapping[str, Any]) -> str:
    """Return the answer for a terminal."""
    chosen = answer["chosen"]
    if chosen is None:
        return f"Nothing that was tried fits in memory. {answer['message']}"
    replicas = f"{chosen['replicas']} replica{'s' * (chosen['replicas'] > 1)}"
    title = "Cheapest that meets the targets" if answer["met"] else "Nothing meets the targets; nearest"
    lines = [f"{title}: {replicas}, {chosen['setting']}", "", *_target_lines(chosen), ""]
    each = "on each of them" if chosen["replicas"] > 1 else ""
    lines += [f"{chosen['vllm_serve_command']}{f'    # {each}' if each else ''}", "", _bill(answer)]
    if not chosen["plain_vllm"]:
        lines.append(
            f"The policies are not vLLM's own: the command takes them from {POLICY_FILE} in the folder below."
        )
    lines += [f"lorasim-plan: warning: {text}" for text in chosen["outside_range"]]
    return "\n".join([*lines, *_tried(answer)])


def _target_lines(chosen: Mapping[str, Any]) -> list[str]:
    rows = [[target["name"], cell(target["limit_ms"]), *_reached(target)] for target in chosen["targets"]]
    return aligned(["target", "limit, ms", "reached, ms", "margin"], rows, labels=1)


def _reached(target: Mapping[str, Any]) -> list[str]:
    reached_ms, margin = target["reached_ms"], target["margin"]
    if reached_ms is None:
        return ["never", "missed"]
    if margin < 0:
        return [cell(reached_ms), f"missed, {reached_ms / target['limit_ms']:.3g} times the limit"]
    return [cell(reached_ms), f"{100 * margin:.0f} %"]


def _bill(answer: Mapping[str, Any]) -> str:
    chosen, prices = answer["chosen"], answer["prices"]
    if chosen["usd_per_hour"] is None:
        return f"No price for the GPU {chosen['gpu'] or 'of this profile'}; see prices.usd_per_gpu_hour."
    return (
        f"${chosen['usd_per_hour']:.2f} an hour: {chosen['replicas']} x {chosen['gpu']} at "
        f"${chosen['usd_per_gpu_hour']:.2f} (an assumption: {prices['source']}, {prices['date']})"
    )


def _tried(answer: Mapping[str, Any]) -> Iterator[str]:
    oom, failed = answer["num_out_of_memory"], answer["failed"]
    parts = [f"{answer['num_tried']} settings tried"]
    parts += [f"{oom} of them out of memory"] * bool(oom) + [f"{len(failed)} failed"] * bool(failed)
    yield f"{', '.join(parts)}."
    yield from (f"lorasim-plan: warning: {text}" for text in failed)
