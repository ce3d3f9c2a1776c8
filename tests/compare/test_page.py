"""The page of a comparison as a reader sees it: in Chromium, on a wide and on a narrow screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser import WIDTHS, browser, needs_chromium, requests, show
from tests.command_line import call
from tests.records.test_results_table import make_result

__all__ = ["browser"]

pytestmark = needs_chromium


Shown = tuple[str, str, tuple[int, int], float, float | None]
"""Of a run: network, method, bits, top-1, seconds."""
RUNS: tuple[Shown, ...] = (
    ("digits_resnet", "hast", (3, 3), 90.0, 120.0),
    ("digits_resnet", "synq", (3, 3), 100.0, 9.5),
    ("digits_resnet", "gdfq", (4, 4), 9.35, None),
)
"""Three methods at two bit widths, one without a known time."""
AWKWARD: tuple[Shown, ...] = (
    ("9net", "2stage", (4, 8), 90.0, 1.0),
    ("10net", "plain", (4, 4), 90.0, 2.0),
    ("net", "10parts", (10, 4), 90.0, 3.0),
    ("7", "1st", (4, 10), 90.0, 4.0),
)
"""Names that begin with digits, one of which is a number, and pairs of bits that begin alike."""


def written(folder: Path, runs: Sequence[Shown]) -> Path:
    for number, (model, method, bits, top1, seconds) in enumerate(runs):
        dataclasses.replace(
            make_result((98.5, 61.25, top1)),
            recipe=f"{method}_{model}_w{bits[0]}a{bits[1]}",
            model=model,
            method=method,
            weight_bits=bits[0],
            activation_bits=bits[1],
            seconds_by_stage={} if seconds is None else {"distillation": seconds},
        ).write(folder / "outputs" / str(number) / "result.json")
    words = ("command=compare", "runs=outputs", "compare.plots=[png]", "compare.formats=[html]")
    assert call(*words, "compare.published=false", folder=folder).status == 0
    return folder / "comparison" / "comparison.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("compared"), RUNS)


def column(browser: webdriver.Chrome, name: str) -> list[str]:
    names = [header.text for header in browser.find_elements(By.CSS_SELECTOR, "th")]
    place = next(number for number, text in enumerate(names, 1) if text.startswith(name))
    cells = browser.find_elements(By.CSS_SELECTOR, f"tbody tr td:nth-child({place})")
    return [cell.text for cell in cells]


def click(browser: webdriver.Chrome, name: str) -> None:
    button = browser.find_element(By.XPATH, f"//th/button[starts-with(., '{name}')]")
    browser.execute_script("arguments[0].click()", button)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_sorted_by_the_column_that_is_clicked(
    browser: webdriver.Chrome, page: Path, width: int
) -> None:
    show(browser, page, width)
    for name, falling in (
        ("top-1", ["100.00", "90.00", "9.35"]),
        ("seconds", ["120", "9.5", "-"]),
        ("method", ["synq", "hast", "gdfq"]),
    ):
        click(browser, name)
        assert column(browser, name) == falling
        click(browser, name)
        known = [cell for cell in falling if cell != "-"]
        assert column(browser, name) == [*reversed(known), *falling[len(known) :]]
    assert len(browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")) == 1


def test_pairs_are_sorted_by_both_numbers_and_names_that_begin_with_digits_as_text(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    show(browser, written(tmp_path, AWKWARD), WIDTHS[0])
    for name, falling in (
        ("W/A", ["10/4", "4/10", "4/8", "4/4"]),
        ("method", ["plain", "2stage", "1st", "10parts"]),
        ("model", ["net", "9net", "7", "10net"]),
    ):
        click(browser, name)
        assert column(browser, name) == falling
        click(browser, name)
        assert column(browser, name) == falling[::-1]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_the_screen_and_asks_for_nothing(
    browser: webdriver.Chrome, page: Path, width: int
) -> None:
    show(browser, page, width)
    assert browser.get_log("browser") == []
    asked = {address for address in requests(browser) if not address.startswith("data:")}
    assert asked == {page.as_uri()}
    sizes = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert sizes[0] == width and sizes[1] <= width
    pictures = browser.execute_script("return [...document.images].map(i => [i.alt, i.width])")
    assert {alt.partition("_")[0] for alt, _ in pictures} == {
        "bits",
        "matrix",
        "methods",
        "seconds",
    }
    assert all(0 < shown <= width for _, shown in pictures)
