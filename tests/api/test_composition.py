"""Composing in Python: values become overrides, and a running application is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from hast_lightning.api.composition import composed
from hast_lightning.config.literals import as_overrides
from hast_lightning.errors import ConfigurationError


@pytest.mark.parametrize(
    "text",
    [
        *("plain", "two words", "a=b,c", 'say "x"', "back\\slash", "null", "(3, 4)", "it's", "7"),
        *("café", "Löwe", "ключ", "${seed}", "a${b", "\\${seed}", "$HOME", '${x}"'),
    ],
)
def test_any_text_arrives_as_it_is(text: str) -> None:
    assert composed(list(as_overrides({"recipe": text}))).recipe == text


def test_what_a_script_was_called_with_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script", "quantizer=foo"])
    with pytest.raises(ConfigurationError, match=r"^trainer=5: 5 is no option of trainer"):
        composed(["trainer=5"])


def test_numbers_of_numpy_arrive() -> None:
    values = {"trainer": {"compile": np.bool_(True)}, "seed": np.int64(3)}
    config = composed(list(as_overrides(values)))
    assert (config.trainer.compile, config.seed) == (True, 3)


def test_nested_values_arrive() -> None:
    values: dict[str, Any] = {
        "quantizer": {"weight_bits": 4, "overrides": [{"layers": "fc*", "weight_bits": 8}]},
        "trainer": {"threads": None, "compile": False},
        "stages": {"distillation": {"optimizer": {"lr": 1e-5}}},
    }
    config = composed(list(as_overrides(values)))
    assert config.quantizer.weight_bits == 4
    assert config.quantizer.overrides[0].layers == "fc*"
    assert config.trainer.threads is None
    assert config.stages["distillation"].optimizer.lr == 1e-5  # type: ignore[attr-defined]


def test_words_that_are_no_settings_of_hydra_arrive() -> None:
    config = composed(["+experiment=digits_w5a6", "modules=tests.malicious"])
    assert (config.recipe, config.quantizer.activation_bits) == ("digits_w5a6", 6)
    assert config.modules == ["tests.malicious"]


def test_an_unknown_key_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"schedule.stepz is no key") as refusal:
        composed(["schedule.stepz=3"])
    assert "\n" not in str(refusal.value)


def test_a_running_application_goes_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [schema, _self_]\nx: ${first:1}\n")
    OmegaConf.register_new_resolver("first", lambda value: value + 40, replace=True)
    ConfigStore.instance().store(name="schema", node={"y": 2})
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        application = GlobalHydra.instance().hydra
        assert composed([]).method.name == "hast"
        assert GlobalHydra.instance().hydra is application
        again = compose("config")
    assert (again.x, again.y) == (41, 2)
