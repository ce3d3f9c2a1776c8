"""What is after DynaDFQ: hard images have soft labels, easy ones are mixed among each other."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from hast_lightning.core.batch import Batch
from tests.composition import composed
from tests.small_runs import assert_same_end_from_everywhere, build_module, fit, small


def test_easy_images_are_mixed_and_hard_ones_are_not() -> None:
    module = build_module(small("method=dynadfq_style", "quantizer=minmax"))
    transform = module.stages["alternation"].distillation.transforms["mix_pairs"]
    torch.manual_seed(0)
    hard = module.source.table[torch.arange(4)]
    easy = F.one_hot(torch.arange(4), 10).float()
    batch = Batch(torch.randn(8, 1, 8, 8), torch.cat([hard, easy]))
    found = transform(batch)
    assert torch.equal(found.inputs[:4], batch.inputs[:4])
    assert torch.equal(found.targets[:4], hard)
    assert not torch.equal(found.inputs[4:], batch.inputs[4:])
    assert found.targets[4:, :4].sum(1).allclose(torch.ones(4))


def test_labels_name_similar_classes_for_the_half_of_the_images_that_is_hard() -> None:
    config = composed("method=dynadfq_style")
    source = config.sources["generator"]
    assert (source.similar, source.share, source.chosen_by) == (True, 0.5, "margin")
    assert config.method.certainty == "ours"


def test_generator_and_student_take_turns() -> None:
    module = build_module(small("method=dynadfq_style", "quantizer=minmax"))
    fit(module)
    assert {"synthesis/cross_entropy", "distillation/cross_entropy"} <= set(module.outcome.scalars)


def test_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    config = small("method=dynadfq_style", "quantizer=minmax")
    assert_same_end_from_everywhere(config, tmp_path, 3)
