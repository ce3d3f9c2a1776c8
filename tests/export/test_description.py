"""What a file says of itself: the front end, and damage to it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hast_lightning.errors import ModelError
from hast_lightning.export.description import METADATA_KEY, Description
from tests.export.test_packed import DESCRIPTION
from tests.sounds import FRONT_END

HEARS = replace(
    DESCRIPTION, modality="features", input_shape=FRONT_END.shape, mean=(0.0,), std=(1.0,)
)


def test_the_front_end_is_what_it_was() -> None:
    description = replace(HEARS, front_end=FRONT_END)
    metadata = {METADATA_KEY: description.to_json()}
    assert Description.from_metadata(metadata, "a") == description


def test_files_of_former_versions_have_none() -> None:
    content = json.loads(HEARS.to_json())
    del content["front_end"]
    metadata = {METADATA_KEY: json.dumps(content)}
    assert Description.from_metadata(metadata, "a") == HEARS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"front_end": {"sample_rate": 0}}, "front_end.sample_rate=0"),
        ({"front_end": {"sample_rate": 8000.0}}, "front_end.sample_rate=8000.0"),
        ({"front_end": {"sample_rate": 8000, "seconds": 10**9}}, "seconds=1000000000"),
        ({"front_end": {"sample_rate": 8000, "seconds": True}}, "front_end.seconds=True"),
        ({"front_end": {"sample_rate": "8000"}}, "not supported between"),
        ({"front_end": {"sample_rate": 8000, "run": "code"}}, "unexpected keyword argument 'run'"),
        ({"front_end": [8000]}, "must be a mapping"),
        ({"input_shape": [1, 14, 9]}, "with a front end that makes (1, 15, 8)"),
        ({"modality": "pictures"}, "with a front end that makes (1, 15, 8)"),
    ],
)
def test_a_damaged_front_end_is_refused(changes: dict[str, Any], message: str) -> None:
    content = {**json.loads(replace(HEARS, front_end=FRONT_END).to_json()), **changes}
    with pytest.raises(ModelError) as refused:
        Description.from_metadata({METADATA_KEY: json.dumps(content)}, "a.onnx")
    assert str(refused.value).startswith("a.onnx: what it says of itself is damaged")
    assert message in str(refused.value)
