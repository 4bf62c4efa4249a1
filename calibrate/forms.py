"""The forms that are tried for each duration of a step, and the steps that show it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

Form = Sequence[str]

BASE: Form = (
    *("constant", "padded_tokens", "padded_tiles", "kv_tokens"),
    *("lora", "lora_padded_tokens", "adapters"),
)
SLOTS: Form = ("slots", "slots_tokens")
"""The LoRA kernels' grid has a program for every slot and token block, also where a slot has no tokens."""
RANK: Form = ("lora_rank_tokens", "adapters_rank")
BLOCKS: Form = ("adapter_blocks",)
KERNELS: Form = (
    *("lora_many", "shrink_slots", "shrink_slots_few", "expand_slots"),
    *("shrink_blocks", "shrink_blocks_few", "expand_blocks"),
)
"""The blocks of the shrink and the expand kernel: those launched for every slot, and those with tokens."""
KERNELS_RANK: Form = ("adapters_rank", "adapters_rank_few")
DECODE: Sequence[Form] = (
    BASE,
    (*BASE, *SLOTS),
    (*BASE, *SLOTS, *BLOCKS),
    (*BASE, *SLOTS, *RANK),
    (*BASE, *SLOTS, *BLOCKS, *RANK),
    (*BASE, *KERNELS),
    (*BASE, *KERNELS, *KERNELS_RANK),
)
MIXED: Sequence[Form] = tuple((*form, "attention_work") for form in DECODE)
LAUNCH: Sequence[Form] = (
    ("constant", "lora"),
    ("constant", "lora", "adapters"),
    ("constant", "lora", "reqs"),
)
HOST: Sequence[Form] = (
    ("constant", "reqs"),
    ("constant", "reqs", "tokens"),
    ("constant", "reqs", "tokens", "lora"),
)
SCHEDULE: Form = ("constant", "reqs", "prefill_reqs", "tokens", "waiting", "cache_entries_adapters")


@dataclass(frozen=True)
class Quantity:
    """One duration of the profile: its name there, the steps that it is fitted to, and the forms that are
    tried.
    """

    name: str
    regime: str
    graph: str | None
    """Graph mode whose steps it is about; None for the host's work, which is the same for all."""
    forms: Sequence[Form]
    settled: bool = False
    """Whether steps that loaded or activated adapters are left out: their copies blur the GPU's time."""

    def rows(self, steps: pd.DataFrame) -> pd.Series:
        """Mark the steps that show this duration."""
        mask = steps.graph == self.graph if self.graph else pd.Series(True, index=steps.index)
        return mask & (steps.loads + steps.activates == 0) if self.settled else mask


FORMS = (
    Quantity("gpu_ms", "decode, full graph", "full", DECODE, settled=True),
    Quantity("launch_ms", "decode, full graph", "full", LAUNCH),
    Quantity("gpu_ms", "mixed, piecewise graph", "piecewise", MIXED, settled=True),
    Quantity("launch_ms", "mixed, piecewise graph", "piecewise", LAUNCH),
    Quantity("gpu_ms", "mixed, no graph", "none", MIXED, settled=True),
    Quantity("launch_ms", "mixed, no graph", "none", LAUNCH),
    Quantity("schedule_ms", "host", None, (SCHEDULE, (*SCHEDULE, "adapters"))),
    Quantity("prepare_ms", "host", None, HOST),
    Quantity("remap_ms", "host", None, HOST),
    Quantity("update_ms", "host", None, HOST),
)
