"""What policies call an adapter: the name of its LoRARequest, where vLLM's tables have an integer."""

from typing import Any


class AdapterNames:
    """Keys of adapters and vLLM's `lora_int_id`, one to one.

    The key is the adapter's name. A second id of the same name (an adapter that was unloaded and loaded anew
    under its name) gets a key of its own, since vLLM holds both.
    """

    def __init__(self) -> None:
        self._requests: dict[int, Any] = {}
        self._keys: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def key(self, lora_request: Any) -> str:
        """Return the key of a LoRARequest, a new one at first sight."""
        lora_id = lora_request.lora_int_id
        known = self._requests.get(lora_id)
        if known is lora_request:
            return self._keys[lora_id]
        if known is None or known.lora_name != lora_request.lora_name:
            self._keys[lora_id] = self._new_key(lora_request.lora_name, lora_id)
            self._ids[self._keys[lora_id]] = lora_id
        self._requests[lora_id] = lora_request
        return self._keys[lora_id]

    def key_of_id(self, lora_id: int) -> str:
        """Return the key of an id; one that `key` has never seen gets a name that no adapter has."""
        if lora_id not in self._keys:
            self._keys[lora_id] = f"#{lora_id}"
            self._ids[self._keys[lora_id]] = lora_id
        return self._keys[lora_id]

    def lora_request(self, key: str) -> Any:
        """Return the last LoRARequest seen for a key. Raises KeyError for what `key` has not returned."""
        return self._requests[self._ids[key]]

    def lora_id(self, key: str) -> int:
        """Return vLLM's id. Raises KeyError for what `key` has not returned."""
        return self._ids[key]

    def _new_key(self, name: str, lora_id: int) -> str:
        return name if self._ids.get(name, lora_id) == lora_id else f"{name}#{lora_id}"
