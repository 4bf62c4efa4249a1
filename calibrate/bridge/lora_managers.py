"""vLLM's adapter managers, with policies for who leaves the GPU slots and the host cache.

`LRUCacheWorkerLoRAManager` and `LRUCacheLoRAModelManager` (vllm/lora) choose victims by their caches' own
order. These subclasses tell the session's tiers what happens, in the order of sim.adapters, and ask them for
victims; everything else is vLLM's. Without a session they are vLLM's in everything.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from calibrate.bridge.adapter_check import local_folder
from calibrate.bridge.adopted_blocks import AdoptedBlocks
from calibrate.bridge.adopted_lora import LoRAInBlock, lora_from_block, lora_without_views
from calibrate.bridge.loaded import Loaded
from calibrate.bridge.loader import AdapterLoader
from calibrate.bridge.runtime import bridge
from calibrate.bridge.session import Session
from sim.errors import UserError

SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class PolicyLoRAModelManager(LRUCacheLoRAModelManager):  # type: ignore[misc]
    """The GPU slots (`_active_adapters`) and the host cache (`_registered_adapters`)."""

    session: Session | None = None
    blocks: AdoptedBlocks | None = None
    """Where adapters lie that were read in one piece."""

    def use(self, session: Session | None) -> None:
        """Ask the policies of `session`; None: vLLM's order decides."""
        self.session = session
        self._registered_adapters.deactivate_fn = self._leave_host_cache
        self._active_adapters.deactivate_fn = self._leave_slot
        if session is not None:
            for tier, present in (
                (session.host, self._registered_adapters),
                (session.slots, self._active_adapters),
            ):
                for lora_id in list(present.order):
                    tier.on_insert(session.names.key_of_id(lora_id))

    def activate_adapter(self, lora_id: int) -> bool:
        """Copy an adapter to a GPU slot, unless it has one; the policy says whose, where all are taken."""
        activated = self._fill_slot(lora_id) if self.session is None else self._activate_with_policy(lora_id)
        if activated and self.blocks is not None:
            self.blocks.on_activated(lora_id)
        return activated

    def _activate_with_policy(self, lora_id: int) -> bool:
        session = self.session
        assert session is not None
        key = session.names.key_of_id(lora_id)
        if lora_id in self._active_adapters:
            session.slots.on_access(key)
            return self._fill_slot(lora_id)
        session.slots.on_miss(key)
        if len(self._active_adapters) >= self.lora_slots:
            _pop(self._active_adapters, session, session.slots.victim())
        self._fill_slot(lora_id)
        session.slots.on_insert(key)
        return True

    def _fill_slot(self, lora_id: int) -> bool:
        """As vLLM; in one piece where the adapter lies in a block, and the policies' settings have it so."""
        loaded = None if self.blocks is None else self.blocks.of(lora_id)
        if loaded is None or lora_id in self._active_adapters:
            return bool(super().activate_adapter(lora_id))
        has_views = bool(self._registered_adapters.cache[lora_id].loras)
        if has_views and (self.session is None or not self.session.in_one_piece):
            return bool(super().activate_adapter(lora_id))
        assert self.blocks is not None
        copies, block = self.blocks.copies, self.blocks.memory(loaded.block)
        if copies.knows(loaded.layout):
            if len(self._active_adapters) >= self.lora_slots:
                self._active_adapters.remove_oldest()
            slot = self.lora_index_to_id.index(None)
            self._active_adapters[lora_id] = None
            self.lora_index_to_id[slot] = lora_id
            copies.replay(loaded.layout, block, slot)
        else:
            copies.record(loaded.layout, block, lambda: self._fill_as_vllm(lora_id))
        return True

    def _fill_as_vllm(self, lora_id: int) -> int:
        super().activate_adapter(lora_id)
        return int(self.lora_index_to_id.index(lora_id))

    def remove_oldest_adapter(self) -> bool:
        """Make room in the host cache; the policy says who leaves it."""
        if self.session is not None and _pop(
            self._registered_adapters, self.session, self.session.host.victim()
        ):
            return True
        return bool(super().remove_oldest_adapter())

    def add_adapter(self, lora: LoRAModel) -> bool:
        """Put an adapter into the host cache, where there is room."""
        was_added = bool(super().add_adapter(lora))
        if was_added and self.session is not None:
            self.session.host.on_insert(self.session.names.key_of_id(lora.id))
        return was_added

    def _add_adapter(self, lora: LoRAModel) -> None:
        if not isinstance(lora, LoRAInBlock) or lora.loras:
            super()._add_adapter(lora)
        else:
            self._registered_adapters[lora.id] = lora
        if isinstance(lora, LoRAInBlock) and lora.loaded is not None:
            assert self.blocks is not None
            self.blocks.on_adopted(lora.id, lora.loaded)

    def _leave_host_cache(self, lora_id: int) -> None:
        if self.session is not None:
            self.session.host.on_remove(self.session.names.key_of_id(lora_id))
        self.deactivate_adapter(lora_id)
        if self.blocks is not None:
            self.blocks.on_left(lora_id)

    def _leave_slot(self, lora_id: int) -> None:
        if self.session is not None:
            self.session.slots.on_remove(self.session.names.key_of_id(lora_id))
        self._deactivate_adapter(lora_id)


class PolicyWorkerLoRAManager(LRUCacheWorkerLoRAManager):  # type: ignore[misc]
    """Brings a step's adapters into slots; one that cannot be loaded fails alone."""

    _manager_cls = PolicyLoRAModelManager
    session: Session | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_step = False
        self._absent: set[int] = set()
        bridge().manager_made(self)

    def use(self, session: Session | None) -> None:
        """Ask the policies of `session`; None: vLLM's order decides."""
        self.session = session
        self._in_step = False
        if session is not None and session.in_one_piece:
            self._make_blocks()
        self._adapter_manager.use(session)

    def set_active_adapters(self, requests: set[Any], mapping: Any | None) -> None:
        """Bring the adapters of a step into slots, and write the mapping of tokens to slots.

        Tokens of an adapter that could not be loaded are computed without one; the scheduler drops them.
        """
        if self.session is None:
            super().set_active_adapters(requests, mapping)
            return
        self._absent = set()
        self._apply_adapters(requests)
        if mapping is not None:
            self._adapter_manager.set_adapter_mapping(_without(mapping, self._absent))

    def add_adapter(self, lora_request: Any) -> bool:
        """Bring one adapter into the host cache and a slot.

        In a step, whatever is wrong with the adapter is reported to the session, and the step goes on.
        Outside of one (`/v1/load_lora_adapter`) it is raised, as in vLLM.
        """
        session, lora_id = self.session, lora_request.lora_int_id
        key = bridge().names.key(lora_request)
        if session is None:
            return bool(super().add_adapter(lora_request))
        if not self._in_step:
            self._begin_step(session, [key])
        if lora_id in self._adapter_manager._registered_adapters and not lora_request.load_inplace:
            session.host.on_access(key)
            if session.in_one_piece:
                return self._use(lora_id)
        try:
            return bool(super().add_adapter(lora_request))
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise  # Not the adapter's fault, and nothing that a step survives.
        except Exception as error:
            self._adapter_manager.remove_adapter(lora_id)
            if not self._in_step:
                raise
            self._absent.add(lora_id)
            session.fail(key, f"{type(error).__name__}: {error}")
            return False

    def adapter_bytes(self) -> int:
        """Return what an adapter of `max_lora_rank` on every linear module takes: that of a slot."""
        return sum(slots[0].numel() * slots.element_size() for slots in self._stacks())

    def _stacks(self) -> Iterator[torch.Tensor]:
        """The tensors that hold the slots, each as its first dimension."""
        for module in filter(_is_linear, self._adapter_manager.modules.values()):
            for stacked in (module.lora_a_stacked, module.lora_b_stacked):
                yield from (stacked,) if isinstance(stacked, torch.Tensor) else stacked

    def make_loader(self) -> AdapterLoader:
        """Return the loader for the host cache's adapters, its process started. Raises as `_make_blocks`."""
        loader = self._make_blocks().loader
        loader.revive()
        return loader

    def _make_blocks(self) -> AdoptedBlocks:
        """Return the memory for adapters that are read in one piece, made on the first call.

        It is pinned where there is a GPU: `max_cpu_loras` times `adapter_bytes`, and two more. Raises
        UserError for modules whose slots have another form (mixture of experts).
        """
        for name, module in self._adapter_manager.modules.items():
            if not _is_linear(module):
                raise UserError(
                    f"calibrate.bridge can neither prefetch nor load in one piece for {name} "
                    f"({type(module).__name__})"
                )
        models = self._adapter_manager
        if models.blocks is None:
            dtype = SAFETENSORS_NAMES[self.lora_config.lora_dtype]
            rank = self.lora_config.max_lora_rank
            most = int(models._registered_adapters.capacity)
            models.blocks = AdoptedBlocks(most, self.adapter_bytes(), dtype, rank, self._stacks())
        blocks: AdoptedBlocks = models.blocks
        return blocks

    def adopt(self, lora_request: Any, loaded: Loaded) -> None:
        """Put an adapter that the loader has read into the host cache, where there is room."""
        models, lora_id = self._adapter_manager, lora_request.lora_int_id
        if lora_id in models._registered_adapters:
            models.blocks.loader.release(loaded.block)
            return
        with models.blocks.given_back_on_error(loaded.block):
            models.add_adapter(self._lora_in_block(lora_request, loaded))

    def _lora_in_block(self, lora_request: Any, loaded: Loaded) -> LoRAInBlock:
        blocks = self._adapter_manager.blocks
        if blocks.copies.knows(loaded.layout):
            return lora_without_views(lora_request, loaded)
        return lora_from_block(self, lora_request, loaded, blocks.memory(loaded.block))

    def close(self) -> None:
        """End the loader's process, if there is one."""
        if self._adapter_manager.blocks is not None:
            self._adapter_manager.blocks.loader.close()

    def evict(self, key: str) -> None:
        """Take an adapter out of the host cache, and out of its slot."""
        assert self.session is not None
        self._adapter_manager.remove_adapter(self.session.names.lora_id(key))

    def _apply_adapters(self, lora_requests: set[Any]) -> None:
        session = self.session
        if session is None:
            super()._apply_adapters(lora_requests)
            return
        self._begin_step(session, [session.names.key(request) for request in lora_requests])
        self._in_step = True
        try:
            super()._apply_adapters(lora_requests)
        finally:
            self._in_step = False

    def _use(self, lora_id: int) -> bool:
        """As the end of vLLM's `add_adapter`, which lists the whole host cache to find out what is in it."""
        self._adapter_manager.get_adapter(lora_id)
        self._adapter_manager.activate_adapter(lora_id)
        return True

    def _load_adapter(self, lora_request: Any) -> LoRAModel:
        session = self.session
        if session is None:
            return super()._load_adapter(lora_request)
        lora = self._load_in_one_piece(lora_request) if session.in_one_piece else None
        if lora is None:
            lora = super()._load_adapter(lora_request)
        session.host.on_miss(session.names.key(lora_request))
        return lora

    def _load_in_one_piece(self, lora_request: Any) -> LoRAModel | None:
        """Read an adapter's file into a block; None where vLLM is to load it: from a hub, say."""
        folder, blocks = local_folder(lora_request), self._adapter_manager.blocks
        loaded = None if folder is None else blocks.read(lora_request.lora_name, folder)
        if loaded is None:
            return None
        with blocks.given_back_on_error(loaded.block):
            return self._lora_in_block(lora_request, loaded)

    @staticmethod
    def _begin_step(session: Session, needed: list[str]) -> None:
        session.host.begin_step(needed)
        session.slots.begin_step(needed)


def _is_linear(module: Any) -> bool:
    return hasattr(module, "lora_a_stacked") and hasattr(module, "lora_b_stacked")


def _pop(cache: Any, session: Session, victim: str | None) -> bool:
    """Take the victim out of a cache of vLLM's; returns whether there is one that vLLM does not pin."""
    if victim is None:
        return False
    lora_id = session.names.lora_id(victim)
    if lora_id in cache.pinned_items:
        return False
    cache.pop(lora_id)
    return True


def _without(mapping: Any, absent: set[int]) -> Any:
    """Return a LoRAMapping in which the tokens of `absent` adapters have none."""
    if not absent:
        return mapping
    tokens, prompts = (
        tuple(0 if lora_id in absent else lora_id for lora_id in ids)
        for ids in (mapping.index_mapping, mapping.prompt_mapping)
    )
    return replace(mapping, index_mapping=tokens, prompt_mapping=prompts)
