from __future__ import annotations

import torch

from hast_lightning.core.batch import Answers, Batch
from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.quantization.diagnosis import ACTIVATION, WEIGHT, LayerDiagnosis
from hast_lightning.tracking.media import (
    Media,
    Samples,
    layer_markdown,
    layer_scalars,
    promotion_histograms,
    sample_histograms,
    sample_pictures,
)

LAYERS = [
    LayerDiagnosis("conv1", WEIGHT, 3, -1.0, 1.5, 0.25, 0.0125),
    LayerDiagnosis("relu", ACTIVATION, 4, 0.0, 6.0, 0.4, None),
    LayerDiagnosis("relu_1", ACTIVATION, 4, None, None, None, None),
]


def samples(channels: int = 1) -> Samples:
    # The teacher is sure of the first label, undecided of the second and sure of another third.
    logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
    return Samples(torch.zeros(3, channels, 8, 8), torch.tensor([0, 1, 0]), logits)


def network(channels: int = 1) -> PretrainedNetwork:
    shape, half = (channels, 8, 8), (0.5,) * channels
    return PretrainedNetwork(torch.nn.Identity(), "any", shape, 2, half, half, "")


def test_difficulty_and_confidence_are_the_teachers() -> None:
    found = sample_histograms(samples())
    sure = 1 / (1 + torch.tensor(-9.0).exp())
    expected = torch.stack([1 - sure, torch.tensor(0.5), sure])
    torch.testing.assert_close(found["samples/difficulty"], expected, atol=1e-6, rtol=0)
    confidence = torch.stack([sure, torch.tensor(0.5), sure])
    torch.testing.assert_close(found["samples/teacher_confidence"], confidence)


def test_images_with_a_color_are_drawn() -> None:
    (picture,) = sample_pictures(samples(), network()).values()
    assert picture.mode == "RGB" and picture.width > 3 * 128
    assert sample_pictures(samples(channels=2), network(channels=2)) == {}


def test_the_parts_of_a_step_are_put_together_before_and_after_promotion() -> None:
    easy, hard = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    answers = {
        "": [Answers(easy, easy, batch), Answers(hard, easy, batch)],
        "_promoted": [Answers(hard, easy, batch), Answers(hard, hard, batch)],
    }
    found = promotion_histograms(answers)
    rounded = {name: values.round().int().tolist() for name, values in found.items()}
    assert rounded == {
        "batch/difficulty/student": [0, 1],
        "batch/difficulty/teacher": [0, 0],
        "batch/difficulty/student_promoted": [1, 1],
        "batch/difficulty/teacher_promoted": [0, 1],
    }


def test_a_batch_without_labels_is_as_difficult_as_the_teachers_answers() -> None:
    easy, hard = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    unlabelled = Batch(torch.zeros(1, 1, 8, 8))
    found = promotion_histograms({"": [Answers(easy, hard, unlabelled)]})
    assert found["batch/difficulty/student"].round().int().tolist() == [1]
    assert found["batch/difficulty/teacher"].round().int().tolist() == [0]


def test_only_what_is_known_of_a_layer_is_a_number() -> None:
    assert layer_scalars(LAYERS) == {
        "quantization/weight_error/conv1": 0.0125,
        "quantization/activation_low/relu": 0.0,
        "quantization/activation_high/relu": 6.0,
    }


def test_the_table_has_a_line_for_every_layer() -> None:
    assert layer_markdown(LAYERS).splitlines() == [
        "| layer | kind | bits | low | high | scale | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| conv1 | weight | 3 | -1 | 1.5 | 0.25 | 0.0125 |",
        "| relu | activation | 4 | 0 | 6 | 0.4 |  |",
        "| relu_1 | activation | 4 |  |  |  |  |",
    ]


def test_nothing_to_show_is_false() -> None:
    assert not Media()
    assert Media(layers=LAYERS)
