"""The page of a comparison as a reader sees it: in Chromium, on a wide and on a narrow screen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser import WIDTHS, browser, needs_chromium, requests, show
from tests.command_line import call
from tests.records.test_results_table import make_result

__all__ = ["browser"]

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods at two bit widths, one without a known time."""
    folder = tmp_path_factory.mktemp("compared")
    for number, (method, bits, top1, seconds) in enumerate(
        [("hast", 3, 90.0, 120.0), ("synq", 3, 100.0, 9.5), ("gdfq", 4, 9.35, None)]
    ):
        dataclasses.replace(
            make_result((98.5, 61.25, top1)),
            recipe=f"{method}_digits_resnet_w{bits}a{bits}",
            method=method,
            weight_bits=bits,
            activation_bits=bits,
            seconds_by_stage={} if seconds is None else {"distillation": seconds},
        ).write(folder / "outputs" / str(number) / "result.json")
    words = ("command=compare", "runs=outputs", "compare.plots=[png]", "compare.formats=[html]")
    assert call(*words, "compare.published=false", folder=folder).status == 0
    return folder / "comparison" / "comparison.html"


def column(browser: webdriver.Chrome, name: str) -> list[str]:
    names = [header.text for header in browser.find_elements(By.CSS_SELECTOR, "th")]
    place = next(number for number, text in enumerate(names, 1) if text.startswith(name))
    cells = browser.find_elements(By.CSS_SELECTOR, f"tbody tr td:nth-child({place})")
    return [cell.text for cell in cells]


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
        button = browser.find_element(By.XPATH, f"//th/button[starts-with(., '{name}')]")
        browser.execute_script("arguments[0].click()", button)
        assert column(browser, name) == falling
        browser.execute_script("arguments[0].click()", button)
        known = [cell for cell in falling if cell != "-"]
        assert column(browser, name) == [*reversed(known), *falling[len(known) :]]
    assert len(browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")) == 1


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
