"""The command line: finds the configuration, composes it with Hydra, and reports errors."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hast_lightning.config import register_schemas, to_object
from hast_lightning.errors import UserError

FULL_ERROR = "HYDRA_FULL_ERROR"
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def config_folder() -> Path:
    """The Hydra configuration: the checkout's ``conf/``, or the copy inside the package.

    A wheel carries ``conf/`` inside the package; in a checkout it lies beside ``src/``.
    """
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "conf"
    if (checkout / "config.yaml").is_file() and (package.parents[1] / "pyproject.toml").is_file():
        return checkout
    return package / "conf"


def one_line(error: BaseException) -> str:
    """An error as one line; where Hydra lists the available choices, they come along."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hidden = ("Set the environment variable", "full_key:", "object_type=", "Config search path")
    shown = [line for line in lines if not line.startswith(hidden) and "provider=" not in line]
    head, *rest = shown or [type(error).__name__]
    return head + (f" {' '.join(rest)}" if rest else "")


@hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")
def run_job(composed: DictConfig) -> float | None:
    """One job: check the configuration, run it, return the objective for a sweeper.

    The objective is the top-1 accuracy where there are labels, the agreement with the
    teacher on held-out synthetic images where there are none.
    """
    config = to_object(composed)
    # Imported late, so that a mistyped option is refused before torch has been loaded.
    from hast_lightning.pipeline import run

    command = shlex.join(["python", "-m", "hast_lightning", *sys.argv[1:]])
    result = run(config, Path(HydraConfig.get().runtime.output_dir), command)
    if result is None:
        return None
    return result.teacher_agreement if result.quantized_top1 is None else result.quantized_top1


def main() -> None:
    """Entry point of ``hast-lightning`` and ``python -m hast_lightning``.

    What a user can mend ends in one line on standard error and exit status 2; with the
    environment variable HYDRA_FULL_ERROR=1 the stack trace is shown instead.
    """
    register_schemas()
    full_error = os.environ.get(FULL_ERROR, "0") not in ("", "0")
    # Hydra then raises instead of printing its own report and exiting.
    os.environ[FULL_ERROR] = "1"
    try:
        run_job()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        print(f"hast-lightning: {one_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        print("hast-lightning: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
