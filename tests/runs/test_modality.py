"""Parts are refused by networks that they are not for."""

from __future__ import annotations

import pytest

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ConfigurationError
from hast_lightning.runs.modality import refuse_unsuited
from tests.diffusion import loaded as denoising
from tests.features import loaded as features
from tests.small_runs import small
from tests.tokens import QUICK, WORDS, loaded


@pytest.mark.parametrize("network", [denoising(), features()], ids=["diffusion", "features"])
@pytest.mark.parametrize("kind", ["own_text", "random_tokens"])
def test_texts_are_for_networks_of_tokens(kind: str, network: PretrainedNetwork) -> None:
    config = small(*WORDS, *QUICK, f"source@sources.text={kind}", "order=[calibration]")
    message = f"sources.text={kind} does not fit model.modality={network.modality}"
    with pytest.raises(ConfigurationError, match=message):
        refuse_unsuited(config, network)
    refuse_unsuited(config, loaded())


def test_images_that_are_rolled_and_mirrored_are_pictures() -> None:
    config = small("method=zeroq", "source@sources.bank=scheduled_bank_of_schedule")
    with pytest.raises(ConfigurationError, match=r"bank=scheduled_bank does not fit"):
        refuse_unsuited(config, features())
