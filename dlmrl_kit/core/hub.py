"""Whether the hub of models and data sets answers."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlparse


def is_offline() -> bool:
    """Tells whether the user said, by ``HF_HUB_OFFLINE``, that only what was downloaded before is to be used."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_reachable() -> bool:
    """Tells whether the hub answers at once; huggingface_hub itself would try for half a minute without a network."""
    from huggingface_hub import constants

    if is_offline():
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True
