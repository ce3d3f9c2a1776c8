"""What a user reads when a network is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hast_lightning.errors import ModelError


def message_of(load_network: Any, **options: Any) -> str:
    """The one line with which ``load_network(**options)`` is refused."""
    with pytest.raises(ModelError) as caught:
        load_network(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
