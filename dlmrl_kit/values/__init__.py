"""Value models: small modules, trained beside the policy, that say what a token of a state is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.values.base import OldValue as OldValue
    from dlmrl_kit.values.base import Value as Value
    from dlmrl_kit.values.token_value import TokenValue as TokenValue

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["OldValue", "Value"],
        "token_value": ["TokenValue"],
    },
)
