"""wandb's key: can it log in without asking anybody?"""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlsplit

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# Where keys were stored before wandb's public server moved; wandb still reads them.
FORMER_HOST = "api.wandb.ai"


def wandb_key_exists() -> bool:
    """Return whether wandb would find a key by itself: in the environment or in the netrc file."""
    return any(map(os.environ.get, KEYS)) or _is_stored()


def _is_stored() -> bool:
    import wandb

    # What `wandb login` stored it under: wandb's own choice, or the user's server.
    hosts = [urlsplit(str(wandb.Settings().base_url)).netloc]
    if not os.environ.get("WANDB_BASE_URL"):
        hosts.append(FORMER_HOST)
    try:
        stored = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(stored.authenticators(host) is not None for host in hosts)
