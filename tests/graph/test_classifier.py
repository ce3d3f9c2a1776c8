"""The rows of a classifier, as a linear layer or as a convolution of one pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hast_lightning.core.network import PretrainedNetwork
from hast_lightning.errors import ModelError
from hast_lightning.graph.classifier import classifier_rows, feature_vectors


def pretrained(*layers: nn.Module) -> PretrainedNetwork:
    return PretrainedNetwork(nn.Sequential(*layers), "tiny", (3, 8, 8), 5, (0.5,), (0.5,), "")


@pytest.mark.parametrize("last", [nn.Linear(4, 5), nn.Conv2d(4, 5, 1)])
def test_rows_are_a_copy_of_the_last_layer_of_as_many_classes(last: nn.Module) -> None:
    rows = classifier_rows(pretrained(nn.Conv2d(3, 5, 3), last, nn.Softmax(1)))
    weight = last.weight
    assert isinstance(weight, torch.Tensor)
    assert torch.equal(rows, weight.detach().view(5, 4))
    rows.zero_()
    assert weight.abs().sum() > 0


def test_rows_are_those_of_the_layer_that_is_called_last() -> None:
    class Declared(nn.Module):
        """Declares its classifier first, and a layer that it never calls last."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier, self.conv = nn.Linear(5, 5), nn.Conv2d(3, 5, 3)
            self.unused = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.conv(x).mean((2, 3)))

    network = Declared()
    assert torch.equal(classifier_rows(pretrained(network)), network.classifier.weight)


def test_a_network_without_such_a_layer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the network tiny has no .* each of its 5 classes"):
        classifier_rows(pretrained(nn.Conv2d(3, 4, 3)))


def test_maps_are_averaged_and_vectors_stay() -> None:
    maps = torch.arange(12.0).view(1, 2, 2, 3)
    assert feature_vectors(maps).tolist() == [[2.5, 8.5]]
    assert feature_vectors(torch.ones(2, 3)).shape == (2, 3)
