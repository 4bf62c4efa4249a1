"""The models that are served: the base model and its adapters."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sim.serve.errors import ApiError, bad_request, not_found

INVALID = "InvalidUserInput"


@dataclass(frozen=True)
class Adapter:
    """An adapter that requests may name."""

    name: str
    path: str


class ServedModels:
    """Which models there are; names and messages as vllm/entrypoints/openai/models/serving.py.

    An adapter that is loaded at runtime has the engine's ``max_lora_rank``; its path is shown, not read.
    """

    def __init__(self, base_model: str, root: str, adapters: Sequence[str], max_model_len: int) -> None:
        self.base_model = base_model
        self.adapters = {name: Adapter(name, name) for name in adapters}
        self._root = root
        self._numbered = list(adapters)
        self._max_model_len = max_model_len
        self._created = int(time.time())

    def adapter_of(self, model: str | None) -> str | None:
        """Return the adapter that a request for ``model`` asks for; None: the base model.

        Raises ApiError (404) for a model that is not served.
        """
        if not model or model == self.base_model:
            return None
        if model not in self.adapters:
            raise not_found(f"The model `{model}` does not exist.", "model")
        return model

    def adapter_number(self, number: int) -> str:
        """Return the adapter with this number among those served from the start. Raises ApiError (404)."""
        if not 0 <= number < len(self._numbered) or self._numbered[number] not in self.adapters:
            raise not_found(
                f"model_id {number} does not exist; expected 0 to {len(self._numbered) - 1}", "model_id"
            )
        return self._numbered[number]

    def load(self, name: str, path: str, load_inplace: bool) -> str:
        """Add an adapter; returns what to say. Raises ApiError (400)."""
        if not name or not path:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                "Both 'lora_name' and 'lora_path' must be provided.",
                error_type=INVALID,
            )
        if name in self.adapters and not load_inplace:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True.",
                error_type=INVALID,
            )
        if name == self.base_model:
            raise bad_request(f"'{name}' is the base model", "lora_name")
        self.adapters[name] = Adapter(name, path)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> str:
        """Take an adapter away; returns what to say. Requests in flight keep it. Raises ApiError."""
        if not name:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                "'lora_name' needs to be provided to unload a LoRA adapter.",
                error_type=INVALID,
            )
        if name not in self.adapters:
            raise not_found(f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def body(self) -> dict[str, Any]:
        """Return the JSON body of ``/v1/models``: the base model and every adapter."""
        base = self._card(self.base_model, root=self._root, max_model_len=self._max_model_len)
        cards = [
            self._card(adapter.name, root=adapter.path, parent=self.base_model)
            for adapter in self.adapters.values()
        ]
        return {"object": "list", "data": [base, *cards]}

    def _card(
        self, name: str, root: str, parent: str | None = None, max_model_len: int | None = None
    ) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "lorasim",
            "root": root,
            "parent": parent,
            "max_model_len": max_model_len,
        }
