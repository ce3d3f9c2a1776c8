"""Model hubs, through huggingface_hub, which is an extra."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from hast_lightning.errors import ConfigurationError, first_line

FILE = "student.safetensors"
"""The packed checkpoint of a repository."""


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigurationError(
            "a model hub needs huggingface_hub: pip install 'hast-lightning[hub]'"
        ) from error
    module: ModuleType = huggingface_hub
    return module


def download(repository: str, revision: str | None) -> Path:
    """Return the path of a repository's packed checkpoint, which is kept in the hub's own cache.

    Raises:
        ConfigurationError: huggingface_hub is missing, or the hub does not give the file.
    """
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(repository, FILE, revision=revision))
    # Of the network, of the hub and of a name that is none: each has classes of its own.
    except Exception as error:
        raise ConfigurationError(
            f"{repository} is neither a file or folder here nor a repository that can be read: "
            f"{first_line(error)}"
        ) from error


def upload(folder: Path, repository: str, *, private: bool, token: str | None) -> str:
    """Upload a folder, and return the address of the repository.

    Raises:
        ConfigurationError: huggingface_hub is missing, or the hub refuses.
    """
    interface = _hub().HfApi(token=token)
    try:
        address = interface.create_repo(repository, private=private, exist_ok=True)
        interface.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:
        raise ConfigurationError(
            f"{repository} cannot be uploaded to: {first_line(error)}"
        ) from error
    return str(address)
