"""The student's optimizer, as its settings say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

from hast_lightning.errors import ConfigurationError
from hast_lightning.stages.optimizer import Optimizer


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", optim.SGD), ("adam", optim.Adam), ("adamw", optim.AdamW)]
)
def test_what_a_group_sets_is_its_own(name: str, kind: type[optim.Optimizer]) -> None:
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [first]}, {"params": [second], "weight_decay": 0.0}]
    built = Optimizer(name, lr=0.5, momentum=0.8, weight_decay=0.25).build(groups)
    assert type(built) is kind
    assert [group["weight_decay"] for group in built.param_groups] == [0.25, 0]
    assert [group["lr"] for group in built.param_groups] == [0.5, 0.5]


def test_momentum_is_nesterovs_where_there_is_any() -> None:
    def group(momentum: float) -> dict[str, Any]:
        parameter = nn.Parameter(torch.ones(1))
        built = Optimizer("sgd", momentum=momentum).build([{"params": [parameter]}])
        return built.param_groups[0]

    assert (group(0.9)["nesterov"], group(0.9)["momentum"]) == (True, 0.9)
    assert group(0.0)["nesterov"] is False
    plain = Optimizer("sgd", nesterov=False).build([{"params": [nn.Parameter(torch.ones(1))]}])
    assert (plain.param_groups[0]["nesterov"], plain.param_groups[0]["momentum"]) == (False, 0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "lion"}, "name='lion' is not one of: adam, adamw, sgd"),
        ({"lr": 0.0}, "lr=0.0 must be greater than 0"),
        ({"momentum": 1.0}, r"momentum=1.0 must be at least 0 and at most 0\.9999"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Optimizer(**values)
