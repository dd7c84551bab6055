"""What a config says of its language model, and what it leaves to the defaults of its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrope.checkpoints.models import Model
from mmrope.records import MOST, is_number, shown


class Stated(dict[str, Any]):
    """The keys of a config, sizes by the names that most models have; values are checked when they are asked for.

    Example:
        >>> from mmrope.checkpoints import MODELS
        >>> from mmrope.checkpoints.stated import Stated
        >>> text = Stated({"n_embd": 4096}, "gptj", MODELS["gptj"])
        >>> text.size("hidden_size"), text.size("num_attention_heads"), text.left_out
        (4096, 16, {'num_attention_heads': 16})
    """

    def __init__(self, config: Mapping[str, Any], name: str, model: Model | None) -> None:
        super().__init__(config)
        self.name = name
        self.model = model or Model(source="", pairing="half")
        self.left_out: dict[str, Any] = {}
        """What was taken of the class."""
        for ours, theirs in self.model.names.items():
            value: Any = config
            for key in theirs.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                self[ours] = value

    def wrong(self, message: str) -> ValueError:
        """An error that says whose config it is."""
        return ValueError(f"{self.name}: {message}")

    def default(self, key: str, value: Any) -> Any:
        """A class default, noted."""
        self.left_out[key] = value
        return value

    def count(self, key: str) -> int | None:
        """A stated number of layers, channels, heads or positions; None where it is missing."""
        value = self.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST):
            raise self.wrong(f"the config has {key} {shown(value)}, which is no number of layers, channels, heads or positions")
        return value

    def size(self, key: str) -> int:
        """A number, of the class where the config leaves it out.

        Raises:
            ValueError: the class has none, either.
        """
        value = self.count(key)
        if value is not None:
            return value
        if key not in self.model.sizes:
            raise self.wrong(f"the config has no {key}, and no class default of it is known")
        return self.default(key, self.model.sizes[key])

    def part(self, key: str) -> Mapping[str, Any]:
        """A dict within the config; empty where it is missing."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(f"the config has {key} {shown(value)}, which is no dict")
        return value

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers, one for each layer."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or not all(map(is_number, value)):
            raise self.wrong(f"the config has {key} {shown(value)}, which is no list of numbers, one for each layer")
        return list(value)
