"""Parts are refused by networks that they are not for."""

from __future__ import annotations

import pytest

from hast_lightning.config import import_parts
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.core.part import parts
from hast_lightning.errors import ConfigurationError
from hast_lightning.runs.modality import refuse_unsuited
from tests.diffusion import loaded as denoising
from tests.features import loaded as features
from tests.several_outputs import boxes_and_scores, described
from tests.small_runs import ALTERNATING_BANK, build_module, fit, small
from tests.tokens import QUICK, WORDS, loaded

OF_TOKENS = (
    *("kl", "adversarial_kl", "raw_outputs", "convex", "difference_entropy", "entropy_margins"),
    *("filtered_cross_entropy", "gaussian_margin", "logit_range"),
)
"""Terms that look at logits or weights alone."""


@pytest.mark.parametrize("network", [denoising(), features()], ids=["diffusion", "features"])
@pytest.mark.parametrize("kind", ["own_text", "random_tokens"])
def test_texts_are_for_networks_of_tokens(kind: str, network: PretrainedNetwork) -> None:
    config = small(*WORDS, *QUICK, f"source@sources.text={kind}", "order=[calibration]")
    message = f"sources.text={kind} does not fit model.modality={network.modality}"
    with pytest.raises(ConfigurationError, match=message):
        refuse_unsuited(config, network)
    refuse_unsuited(config, loaded())


def test_terms_of_stages_that_take_turns_are_refused_as_any() -> None:
    outputs = described(boxes_and_scores())
    bank = ("stages.calibration.terms.hard_cross_entropy.enabled=false", *ALTERNATING_BANK)
    for term in ("kd", "alignment"):
        off = f"stages.alternation.distillation.terms.{term}.enabled=false"
        labels = "stages.alternation.synthesis.terms.hard_cross_entropy.enabled=false"
        config = small(*bank, off, labels)
        if term == "alignment":
            message = "^stages.alternation.distillation.terms.kd=kl is for one output"
            with pytest.raises(ConfigurationError, match=message):
                refuse_unsuited(config, outputs)
        else:
            refuse_unsuited(config, outputs)
    message = "^stages.alternation.synthesis.terms.hard_cross_entropy=hard_cross_entropy is for one"
    with pytest.raises(ConfigurationError, match=message):
        refuse_unsuited(small(*bank), outputs)


import_parts()


@pytest.mark.parametrize(
    "term", sorted(n for n, c in parts()["term"].items() if c.__module__.startswith("hast"))
)
def test_a_term_with_tokens_takes_a_step_or_is_refused_in_one_line(term: str) -> None:
    words = (
        *(*WORDS, *QUICK, "quantizer=minmax", "quantizer.bits=4"),
        *("rounding@quantizer.rounding=nearest", "order=[calibration,distillation]"),
        *("stages.distillation.steps=1", "stages.distillation.batch_size=4"),
        f"+term@stages.distillation.terms.extra={term}",
    )
    if term in OF_TOKENS:
        module = build_module(small(*words))
        fit(module)
        assert module.iteration == module.agenda.iterations
        return
    message = f"terms.extra={term} does not fit model.modality=tokens: it is for"
    with pytest.raises(ConfigurationError, match=message) as caught:
        build_module(small(*words))
    assert "\n" not in str(caught.value)


def test_images_that_are_rolled_and_mirrored_are_pictures() -> None:
    config = small("method=zeroq", "source@sources.bank=scheduled_bank_of_schedule")
    with pytest.raises(ConfigurationError, match=r"bank=scheduled_bank does not fit"):
        refuse_unsuited(config, features())
