"""The page as a reader sees it: in Chromium, on a wide and on a narrow screen, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from hast_lightning.records.folder import REPORT_FILE
from hast_lightning.records.result import Result
from hast_lightning.report import page
from tests.browser import WIDTHS, browser, needs_chromium, requests, show
from tests.report.pages import report

__all__ = ["browser"]

pytestmark = needs_chromium
LONG = "a_recipe_with_a_very_long_name_" * 8
HOSTILE = "<script>document.title='run'</script><img src=http://192.0.2.1/x onerror=alert(1)>"
# Every text that is seen, with the first background behind it that is opaque.
CONTRASTS = """
const luminance = ([r, g, b]) => {
  const f = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
};
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const behind = element => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    const color = numbers(getComputedStyle(e).backgroundColor);
    layers.push(color);
    if (color.length < 4) break;
  }
  return layers.reduceRight((below, c) => {
    const a = c.length < 4 ? 1 : c[3];
    return below ? below.map((v, i) => v * (1 - a) + c[i] * a) : c;
  }, null);
};
const worst = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !element.getClientRects().length || element.closest('title, desc')) continue;
  const style = getComputedStyle(element), svg = element instanceof SVGElement;
  const pair = [numbers(svg ? style.fill : style.color), behind(element)].map(luminance);
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  worst.push([ratio, element.tagName + '.' + element.className + ' ' + element.textContent.trim()]);
}
return worst.sort((a, b) => a[0] - b[0])[0];
"""


@pytest.fixture(scope="module")
def written(reported: tuple[Path, Result]) -> Path:
    """The page of a whole run."""
    return reported[0] / REPORT_FILE


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_a_run_is_whole_and_asks_for_nothing(
    browser: webdriver.Chrome, written: Path, width: int
) -> None:
    show(browser, written, width)
    assert browser.get_log("browser") == []
    asked = requests(browser)
    assert written.as_uri() in asked
    assert {address for address in asked if not address.startswith("data:")} == {written.as_uri()}
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) == 24 and min(widths) > 0
    sizes = browser.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert sizes[0] == width and max(sizes[1:]) <= width
    charts = "return [...document.querySelectorAll('figure svg[role=img]')]"
    boxes = browser.execute_script(f"{charts}.map(c => c.getBoundingClientRect().width)")
    assert len(boxes) >= 8 and min(boxes) > 250


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_text_stands_out_from_its_background(
    browser: webdriver.Chrome, written: Path, width: int, scheme: str
) -> None:
    show(browser, written, width, scheme)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    ratio, text = browser.execute_script(CONTRASTS)
    assert ratio >= 4.5, text  # WCAG 2, AA


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_do_not_widen_the_page(
    browser: webdriver.Chrome, tmp_path: Path, width: int
) -> None:
    (tmp_path / "long.html").write_text(page.render(report(LONG)), encoding="utf-8")
    show(browser, tmp_path / "long.html", width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_hostile_name_neither_runs_nor_asks(browser: webdriver.Chrome, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(page.render(report(HOSTILE)), encoding="utf-8")
    show(browser, file, 1280)
    assert browser.title == f"{HOSTILE}: {HOSTILE}"
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.get_log("browser") == []
    assert {url for url in requests(browser) if not url.startswith("data:")} == {file.as_uri()}


def test_the_policy_holds_even_if_the_escaping_did_not(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    text = page.render(report()).replace("<main>", f"<main>{HOSTILE}")
    (tmp_path / "broken.html").write_text(text, encoding="utf-8")
    show(browser, tmp_path / "broken.html", 1280)
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.title == "plain: plain"  # the script did not run
    assert any("Content Security Policy" in e["message"] for e in browser.get_log("browser"))


def test_on_paper_nothing_is_folded_away(browser: webdriver.Chrome, written: Path) -> None:
    show(browser, written, 1280, "dark")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = false)")
    rows = "return [...document.querySelectorAll('.layers tbody tr')].every(r => r.checkVisibility"
    visible = f"{rows}({{contentVisibilityAuto: true}}))"
    assert not browser.execute_script(visible)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    # The next frame, not this one, has the style for paper.
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(visible))
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
