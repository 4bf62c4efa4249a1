"""How long the copies of adapters to their slots keep the GPU, from when the steps after them begin."""

import pandas as pd

HEADROOM = 1.5
"""A copy shows where it takes so many times what the host's work does, beside which it runs."""


def copy_durations(steps: pd.DataFrame) -> pd.Series:
    """Return, in ms for each of its rank, the copy of an adapter in each step that shows one.

    `steps` as `calibrate.dataset.read` has them. vLLM writes a changed LoRA mapping with blocking copies, in
    line behind those of the adapters: what a step with activations waits for longer than one without.
    """
    remap_ms = steps.remap_ms.where(steps.activates == 0).groupby(steps.run).transform("median")
    copied_s = steps.launch_start_s - remap_ms / 1e3
    begun_s = (steps.lora_end_s - steps.mapping_s - steps.activate_s).clip(lower=steps.gpu_begin_s)
    taken_s = copied_s - begun_s
    shown = (steps.activates > 0) & (taken_s > HEADROOM * steps.activate_s)
    return (1e3 * taken_s / (steps.activates * steps.max_lora_rank))[shown]
