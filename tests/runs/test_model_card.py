from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from hast_lightning.export.description import Description
from hast_lightning.records.result import Result
from hast_lightning.runs.model_card import CARD_FILE, bits_of, model_card
from tests.command_line import TINY, call
from tests.records.test_results_table import make_result

DESCRIBED = Description(
    network="some_network",
    teacher_checksum="ab" * 32,
    recipe="some_recipe",
    seed=3,
    quantizer={"weight_bits": 4, "activation_bits": 8},
    input_shape=(3, 32, 24),
    num_classes=10,
    mean=(0.5, 0.25, 0.1),
    std=(0.5, 0.5, 0.5),
    resize_ratio=1.0,
)


def made() -> Result:
    kept = {"kept_stage": "distillation", "kept_top1": 96.754, "kept_agreement": 97.125}
    return replace(make_result((98.5, 61.25, 96.754)), **kept)


def test_the_head_is_what_model_hubs_read() -> None:
    head = model_card(DESCRIBED, made(), "apache-2.0").split("---")[1]
    assert yaml.safe_load(head) == {
        "library_name": "hast-lightning",
        "tags": ["quantization", "zero-shot-quantization"],
        "license": "apache-2.0",
    }
    assert "license:" not in model_card(DESCRIBED, made(), None)


def test_it_says_what_from_what_how_and_how_well() -> None:
    card = model_card(DESCRIBED, made(), None)
    for words in (
        "# some_network W4A8",
        "| Input | 3 x 32 x 24, mean 0.5, 0.25, 0.1, ",
        "| Full-precision weights | SHA-256 abababababababab... |",
        "| License of the weights | not given",
        "| Size | 400.0 KB, 10.0 times smaller |",
        "| Top-1 accuracy | 96.75 % of 1,024 images; full precision 98.50 % |",
        "97.12 % of 1,024 held-out synthetic images",
        "synthesis (1), distillation (1)",
        "## Limits",
    ):
        assert words in card


def test_without_labels_it_says_that_accuracy_is_not_known() -> None:
    unlabeled = replace(made(), kept_top1=None, teacher_top1=None)
    card = model_card(DESCRIBED, unlabeled, None)
    assert "Accuracy was not measured" in card
    assert "Top-1" not in card
    of_synthetic = "- The agreement was measured on synthetic images"
    assert (of_synthetic in card) == ("synthetic" in unlabeled.agreement_on)
    own = replace(unlabeled, agreement_on="held-out own images")
    assert of_synthetic not in model_card(DESCRIBED, own, None)
    assert of_synthetic not in model_card(DESCRIBED, None, None)


def test_of_tokens_it_speaks_of_texts() -> None:
    described = replace(
        DESCRIBED, modality="tokens", input_shape=(16,), mean=(0.0,), std=(1.0,), num_classes=32
    )
    result = replace(made(), kept_perplexity=4.8321, teacher_perplexity=4.4, evaluated_images=64)
    card = model_card(described, result, None)
    assert "| Perplexity | 4.832 on 64 texts; full precision 4.400 |" in card
    assert "96.75 % of next tokens in 64 texts" in card
    unlabeled = model_card(described, replace(result, kept_top1=None, kept_perplexity=None), None)
    assert "no texts of the user's were at hand" in unlabeled
    for each in (card, unlabeled):
        assert "classifies" not in each and "labeled images" not in each


def test_of_values_it_has_the_error_of_the_student_that_is_handed_back() -> None:
    described = replace(DESCRIBED, modality="diffusion")
    judged = {"calibration": {"evaluation": {"error": 0.125}}}
    result = replace(made(), kept_top1=None, output_error=0.75, judged=judged)
    assert "| 0.125 on " in model_card(described, replace(result, kept_stage="calibration"), None)
    assert "| 0.75 on " in model_card(described, result, None)


def test_a_network_without_its_run_has_a_card_too() -> None:
    assert "With the recipe some_recipe" in model_card(DESCRIBED, None, None)


def test_mixed_bits_are_called_so() -> None:
    assert bits_of({"weight_bits": 4, "activation_bits": 4, "overrides": [{"layers": "a"}]}) == (
        "W4A4, mixed"
    )


def test_it_lies_beside_the_files_of_a_run(tmp_path: Path) -> None:
    words = (*TINY, "data=digits", "model.license=mit", "hydra.run.dir=run")
    assert call(*words, folder=tmp_path).status == 0
    card = (tmp_path / "run" / CARD_FILE).read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "# digits_resnet W3A3" in card
    assert call(*TINY, "export=none", "hydra.run.dir=none", folder=tmp_path).status == 0
    assert not (tmp_path / "none" / CARD_FILE).exists()
