"""Steps with the same requests, one after another, in closed form."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sim.costs import FS_PER_NS
from sim.scheduler import StepPlan
from sim.steps import StepObserver, StepRecord, gpu_idle

LARGEST_FS = 2**62
"""No run is longer, so that its times can be summed up in 64-bit integers."""


@dataclass(slots=True)
class DecodeRun:
    """`num_steps` further steps like the last one of those under way, whose requests decode a token each.

    Turn j, from 1 on, is the instant when the results of the oldest step under way are known and the j-th
    further step is scheduled. All else about a step follows from when its turn is. The GPU's time of the j-th
    further step is `gpu_fs` + (j - 1) * `growth_fs`, and the turns come after fixed periods, or after the
    GPU's time and a fixed period.
    """

    under_way: Sequence[StepRecord]
    """One step, or two of an asynchronous engine. The last is like those that follow; the first may compute
    the prompts of requests that decode in the last."""
    num_steps: int
    first_turn_ns: int
    base_ns: int
    """Turn `offset`, and where the regular turns begin."""
    offset: int
    period_ns: int
    paced_by_gpu: bool
    launch_bound: bool
    """Whether the GPU is busy as long as the launches take, and not longer."""
    carry_fs: int
    """The GPU's time before the first further step that is not a whole ns."""
    last: StepRecord
    """The step that the further ones are like."""
    gpu_fs: int
    """GPU time of the first further step."""
    growth_fs: int
    """By how much that of the next is longer."""

    def total_fs(self, num_steps: int) -> int:
        """GPU time of the first `num_steps` further steps, with what was carried over to them."""
        growing_fs = self.growth_fs * (num_steps * (num_steps - 1) // 2)
        return self.carry_fs + num_steps * self.gpu_fs + growing_fs

    def gpu_ns(self, num_steps: int) -> int:
        """GPU time of the first `num_steps` further steps."""
        growing_fs = self.growth_fs * (num_steps * (num_steps - 1) // 2)
        return (self.carry_fs + num_steps * self.gpu_fs + growing_fs) // FS_PER_NS

    def turn_ns(self, number: int) -> int:
        """When turn `number` is, up to the one after the run."""
        regular = number - self.offset
        if regular < 0:
            return self.first_turn_ns
        time_ns = self.base_ns + regular * self.period_ns
        return time_ns + self.gpu_ns(regular) if self.paced_by_gpu and regular else time_ns

    def num_turns(self, before_ns: int, inclusive: bool) -> int:
        """How many turns of the run come before `before_ns`, or at it."""
        shortest_ns = self.period_ns + (self.gpu_fs // FS_PER_NS if self.paced_by_gpu else 0)
        most = self.num_steps
        if shortest_ns:
            # Turns come further and further apart: no more than these can be before.
            most = min(most, self.offset + 1 + max(0, before_ns - self.base_ns) // shortest_ns)
        bisect = bisect_right if inclusive else bisect_left
        return bisect(range(1, most + 1), before_ns, key=self.turn_ns)

    def busy_ns(self, num_steps: int) -> int:
        """How long the GPU is busy with the first `num_steps` further steps."""
        if self.launch_bound:
            return num_steps * self.last.cost.launch_ns
        return self.gpu_ns(num_steps)

    def gpu_end_ns(self, number: int) -> int:
        """When the GPU ends the further step `number`; 0 is the last one under way."""
        if number == 0:
            return self.last.gpu_end_ns
        cost = self.last.cost
        if len(self.under_way) == 1:
            return self.turn_ns(number + 1) - cost.update_ns
        if self.paced_by_gpu:
            return self.last.gpu_end_ns + self.gpu_ns(number)
        busy_ns = self.busy_ns(number) - self.busy_ns(number - 1)
        return self.turn_ns(number) + cost.schedule_ns + cost.prepare_ns + busy_ns

    def record(self, number: int, plan: StepPlan) -> StepRecord:
        """Return all about the further step `number`, whose plan is given; 0 is the last one under way."""
        if number <= 0:
            return self.under_way[number - 1].with_plan(plan)
        last, schedule_ns, gpu_end_ns = self.last, self.turn_ns(number), self.gpu_end_ns(number)
        start_ns = gpu_end_ns - self.busy_ns(number) + self.busy_ns(number - 1)
        cost, shape = last.cost, last.shape
        return StepRecord(
            last.step + number,
            plan,
            shape.with_kv_tokens(shape.kv_tokens + number * shape.num_reqs),
            cost.with_gpu_fs(cost.gpu_fs + number * cost.gpu_growth_fs),
            [],
            schedule_ns,
            0,
            0,
            schedule_ns + cost.schedule_ns + cost.prepare_ns + cost.launch_ns,
            start_ns,
            gpu_end_ns,
            gpu_idle(start_ns - self.gpu_end_ns(number - 1), 0, 0, 0),
        )

    def play(self, observer: StepObserver) -> None:
        """Tell `observer` of the run step by step."""
        last = self.last.plan
        # Whoever joined with the last of two steps had a token with the first, as the others.
        plans = [record.plan for record in self.under_way[:1]]
        plans += [last.repeated(last.tick) for _ in self.under_way[1:]]
        for number in range(1, self.num_steps + 1):
            observer.on_tokens(plans.pop(0), self.turn_ns(number))
            plans.append(last.repeated(last.tick + number))
            observer.on_step(self.record(number, plans[-1]))


def plan_run(
    under_way: Sequence[StepRecord], num_steps: int, first_turn_ns: int, carry_fs: int
) -> DecodeRun | None:
    """Return the run of up to `num_steps` steps that begins at `first_turn_ns`, where it has a closed form.

    It has none where it is now the GPU and now the host thread that the other waits for.
    """
    last = under_way[-1]
    cost = last.cost
    prepare_ns = cost.schedule_ns + cost.prepare_ns
    host_ns = prepare_ns + cost.launch_ns + cost.update_ns
    gpu_fs, growth_fs = cost.gpu_fs + cost.gpu_growth_fs, cost.gpu_growth_fs
    launch_bound = gpu_fs < cost.launch_ns * FS_PER_NS
    base_ns, offset, period_ns, paced_by_gpu = first_turn_ns, 1, host_ns, False
    if launch_bound:
        num_steps = min(num_steps, _steps_within(cost.launch_ns, gpu_fs, growth_fs))
    if len(under_way) == 1:
        if not launch_bound:
            period_ns, paced_by_gpu = prepare_ns + cost.update_ns, True
    elif gpu_fs >= host_ns * FS_PER_NS and first_turn_ns + host_ns - cost.update_ns <= last.gpu_end_ns:
        base_ns, offset, period_ns = last.gpu_end_ns + cost.update_ns, 2, 0
        paced_by_gpu = True
    elif last.gpu_end_ns <= first_turn_ns + prepare_ns:
        num_steps = min(num_steps, _steps_within(host_ns, gpu_fs, growth_fs))
    else:
        return None
    while num_steps * (gpu_fs + num_steps * growth_fs) > LARGEST_FS:
        num_steps //= 2
    if num_steps < 1:
        return None
    return DecodeRun(
        under_way,
        num_steps,
        first_turn_ns,
        base_ns,
        offset,
        period_ns,
        paced_by_gpu,
        launch_bound,
        carry_fs,
        last,
        gpu_fs,
        growth_fs,
    )


def _steps_within(limit_ns: int, gpu_fs: int, growth_fs: int) -> int:
    """How many steps, one after another, take the GPU at most `limit_ns` each."""
    slack_fs = limit_ns * FS_PER_NS - gpu_fs
    if slack_fs < 0:
        return 0
    return slack_fs // growth_fs + 1 if growth_fs else LARGEST_FS
