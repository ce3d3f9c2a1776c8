"""Names, shapes and containers of several outputs."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hast_lightning.core.outputs import Outputs, shape_of_output
from hast_lightning.errors import ModelError


class Pair(NamedTuple):
    boxes: Tensor
    scores: Tensor


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(2, *shape) for shape in shapes]


def containers() -> list[Any]:
    a, b, c, d = tensors((3,), (2, 4, 4), (), (5, 1))
    return [
        {"out": b, "aux": a},
        OrderedDict(out=b, aux=a),
        (a, b),
        [a, (b, {"z": c, "a": d}), None],
        Pair(a, c),
    ]


@pytest.mark.parametrize("output", containers(), ids=lambda each: type(each).__name__)
def test_what_was_split_and_put_back_is_as_before(output: Any) -> None:
    outputs = Outputs.of(output)
    read = Outputs.from_plain(json.loads(json.dumps(asdict(outputs))))
    assert read == outputs
    leaves = dict(zip(outputs.names, (each for each in flat(output)), strict=True))
    joined = torch.cat([each.reshape(2, -1) for each in leaves.values()], dim=1)
    assert joined.shape[1] == sum(outputs.sizes)
    for name, part in read.split(joined).items():
        assert torch.equal(part.reshape(leaves[name].shape), leaves[name])
    built = read.build(leaves)
    assert all(a is b for a, b in zip(flat(built), flat(output), strict=True))
    assert isinstance(built, dict) == isinstance(output, dict)
    # Consumers such as the heads of detectors count the levels of a pyramid.
    assert not isinstance(output, dict) or list(built) == list(output)


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor) or output is None:
        return [] if output is None else [output]
    items = output.values() if isinstance(output, dict) else output
    return [leaf for item in items for leaf in flat(item)]


def test_an_only_tensor_has_no_name() -> None:
    alone = Outputs.alone((3, 4))
    assert not alone.several and alone.sizes == (12,)
    assert alone.split(torch.zeros(2, 3, 4))[""].shape == (2, 3, 4)


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a"], "shapes": [[2]], "structure": ["list", ["a"]]},
        {"names": ["a", "b"], "shapes": [[2]], "structure": ["list", ["a", "b"]]},
        {"names": ["a", "b"], "shapes": [[2], [-1]], "structure": ["list", ["a", "b"]]},
        {"names": ["a", "b"], "shapes": [[2], [3]], "structure": ["list", ["a", "c"]]},
        {"names": ["a", "a"], "shapes": [[2], [3]], "structure": ["list", ["a", "a"]]},
        {"names": ["a", "b"], "shapes": [[2], [3]], "structure": ["os.system", ["a", "b"]]},
        {"names": ["a", "b"], "shapes": [[2], [3]], "structure": 7},
        {"names": ["a", "b"]},
    ],
)
def test_what_a_file_says_is_checked(content: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Outputs.from_plain(content)


def test_a_name_that_no_output_has_is_refused_with_those_that_there_are() -> None:
    outputs = Outputs(("out", "aux"), ((4,), (2, 3)), ("list", ("out", "aux")))
    assert shape_of_output(outputs, "aux") == (2, 3)
    with pytest.raises(ModelError, match="output=main: the network puts out out, aux"):
        shape_of_output(outputs, "main")
    with pytest.raises(ModelError, match="has one output"):
        shape_of_output(None, "out")
    assert outputs.in_words == "out (4), aux (2x3)"
