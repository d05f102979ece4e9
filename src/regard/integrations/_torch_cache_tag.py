"""What torch.compile keeps on disk while regard is active, kept apart from what it keeps otherwise.

Its caches are keyed by the graph before `aten::scaled_dot_product_attention` is looked into, and what they hold calls
regard's operators by name. Without a tag of its own that code would be handed to a process that knows no regard.
"""

from __future__ import annotations

from typing import Any

from torch.compiler import config as _torch_config

from regard._version import __version__

_config: Any = _torch_config
_NAME = "cache_key_tag"


class CacheTag:
    """Added to the tag that was there; `remove` takes it back where nobody has set another one since."""

    def __init__(self) -> None:
        # An assigned value is seen by the thread that assigned it, and any thread may compile: so what the environment
        # gives is changed, which all see, and what this thread was assigned.
        self._entry = _config._config[_NAME]  # noqa: SLF001 - torch has no public way
        self._common_before = self._entry.env_value_default
        self._entry.env_value_default = self._common = _tagged(_given(self._common_before))
        self._own_before: str = getattr(_config, _NAME)
        self._own = None if self._own_before == self._common else _tagged(self._own_before)
        if self._own is not None:
            setattr(_config, _NAME, self._own)

    def remove(self) -> None:
        """The tag is what it was."""
        if self._own is not None and getattr(_config, _NAME) == self._own:
            setattr(_config, _NAME, self._own_before)
        if self._entry.env_value_default == self._common:
            self._entry.env_value_default = self._common_before


def _given(value: object) -> str:
    """The environment's value, or nothing where it gave none."""
    return value if isinstance(value, str) else ""


def _tagged(tag: str) -> str:
    return f"{tag}+regard {__version__}" if tag else f"regard {__version__}"
