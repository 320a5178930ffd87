"""The playground's page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.integration.playing import MODELS, WAIT_S, Playground
from tests.integration.serving import ServerProcess

Array = npt.NDArray[Any]

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Without a network it would look up its maker's hosts at every start.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,1800",
)  # fmt: skip
# The light theme's colours of a pixel of 0 and of 255: --paper and --ink of style.css, red alone.
PAPER, INK = 0xFB, 0x1C


def _log(driver: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = driver.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


class Page:
    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._wait = WebDriverWait(driver, WAIT_S, poll_frequency=0.05)

    def load(self, url: str) -> None:
        self.driver.get(url)
        self.until(lambda: self["status"].get_attribute("data-state") == "up" and self.settled())

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def until(self, holds: Callable[[], Any]) -> None:
        self._wait.until(lambda _driver: holds())

    def settled(self) -> bool:
        """Whether every picture has been drawn."""
        canvases = self.driver.find_elements(By.TAG_NAME, "canvas")
        return all(canvas.get_attribute("width") != "300" for canvas in canvases)

    def tile(self, name: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, f"#tiles figure[data-name='{name}']")

    def picture(self, canvas: WebElement) -> Array:
        """What a canvas shows, [28, 28] of 0 to 255, give or take one."""
        url = self.driver.execute_script("return arguments[0].toDataURL()", canvas)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))[..., 0].astype(np.float64)
        return np.rint((PAPER - shown) / (PAPER - INK) * 255).clip(0, 255).astype(np.uint8)

    def tile_picture(self, name: str) -> Array:
        return self.picture(self.tile(name).find_element(By.TAG_NAME, "canvas"))

    def decibels(self, name: str) -> float:
        return float(self.tile(name).text.split(" dB")[0].split()[-1])

    def set_slider(self, name: str, value: str) -> None:
        """As a hand would: the page hears of it."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.driver.execute_script(script, self[name], value)

    def click_thumbnail(self, group: str, number: int) -> None:
        self[group].find_elements(By.TAG_NAME, "button")[number].click()

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call; those of the browser's own pages are left out."""
        messages = [json.loads(entry["message"])["message"] for entry in _log(self.driver, "performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
            and not message["params"]["request"]["url"].startswith(("chrome", "data:"))
        ]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, playground: Playground) -> Page:
    page = Page(driver)
    page.load(playground.url)
    return page


def test_the_page_loads_and_asks_nobody_else(page: Page, playground: Playground) -> None:
    assert page["status"].text == f"{len(MODELS)} models at {playground.address}"
    assert not page["banner"].is_displayed()
    figures = page.driver.find_elements(By.CSS_SELECTOR, "#tiles figure")
    assert [figure.get_attribute("data-name") for figure in figures] == [
        "with noise", "mnist-denoising", "mnist-denoising-conv", "mnist-deep", "mnist-undercomplete",
    ]  # fmt: skip
    asked = page.requests()
    assert any(url.endswith("/api/denoise") for url in asked)
    assert all(url.startswith(playground.url) for url in asked), asked
    assert not _log(page.driver, "browser")


def test_a_stroke_is_drawn_and_sent_to_every_model(page: Page) -> None:
    page["clear"].click()
    page.until(lambda: page.picture(page["pad"]).max() == 0)
    Select(page["kind"]).select_by_value("masking")
    page.set_slider("level", "0")
    before = page.tile_picture("mnist-deep")
    pad = page["pad"]
    ActionChains(page.driver).move_to_element_with_offset(pad, 0, -70).click_and_hold().move_by_offset(
        0, 140
    ).release().perform()
    drawn = page.picture(pad)
    assert drawn[:, 14].max() == 255
    assert drawn[8:20, 13:15].min() > 200, "from the upper end to the lower one"
    assert drawn[:, :10].max() == drawn[:, 18:].max() == 0
    page.until(lambda: (page.tile_picture("mnist-deep") != before).any())
    np.testing.assert_allclose(page.tile_picture("with noise"), drawn, atol=1)
    page["erase"].click()
    ActionChains(page.driver).move_to_element_with_offset(pad, 0, -70).click_and_hold().move_by_offset(
        0, 140
    ).release().perform()
    assert page.picture(pad)[8:20, 13:15].max() < 60


def test_each_tile_shows_what_its_model_makes_of_the_noise(page: Page, playground: Playground) -> None:
    assert page.decibels("with noise") == pytest.approx(9.4, abs=0.6), "gaussian noise of 0.5, clipped"
    assert page.decibels("mnist-denoising-conv") > page.decibels("with noise") + 6
    # What is shown is read back to within a level or so.
    noise = page.tile_picture("with noise")
    denoised = playground.client.denoise("mnist-denoising-conv", noise[None]).rows[0]
    np.testing.assert_allclose(page.tile_picture("mnist-denoising-conv"), denoised * 255, atol=4)
    rebuilt = playground.client.reconstruct("mnist-deep", noise[None]).rows[0]
    np.testing.assert_allclose(page.tile_picture("mnist-deep"), rebuilt * 255, atol=6)
    page.set_slider("level", "0.1")
    page.until(lambda: page.decibels("with noise") > 19)
    assert page["level-text"].text == "0.10"
    page.until(lambda: page.decibels("mnist-deep") > 15)


def test_a_walk_goes_from_the_digit_to_the_other(page: Page, playground: Playground) -> None:
    start = page.picture(page["pad"])
    page.click_thumbnail("ends", 4)
    end = page.picture(page["ends"].find_elements(By.TAG_NAME, "canvas")[4])
    for model, method in (("mnist-deep", "linear"), ("mnist-undercomplete", "spherical")):
        Select(page["walk-model"]).select_by_value(model)
        Select(page["method"]).select_by_value(method)
        rows = playground.client.interpolate(model, start[None], end[None], steps=21, method=method).rows[0] * 255

        def shown(rows: Array = rows) -> bool:
            strip = page["strip"].find_elements(By.TAG_NAME, "canvas")
            return all(
                np.allclose(page.picture(canvas), row, atol=4) for canvas, row in zip(strip, rows[::2], strict=True)
            )

        page.until(shown)
        page.set_slider("where", "7")
        assert np.allclose(page.picture(page["frame"]), rows[7], atol=4)
        assert page["where-text"].text == "35 %"
    page["play"].click()
    page.until(lambda: page["where"].get_attribute("value") != "7")


def test_latents_are_turned_by_sliders_and_picked_on_the_map(page: Page, playground: Playground) -> None:
    digit = page.picture(page["pad"])
    latent = playground.client.encode("mnist-undercomplete", digit[None])

    def decoded_is(latents: Array) -> bool:
        rows = playground.client.decode("mnist-undercomplete", latents.astype(np.float32))
        return np.allclose(page.picture(page["decoded"]), rows[0] * 255, atol=4)

    page.until(lambda: decoded_is(latent))
    slider = page["units"].find_elements(By.TAG_NAME, "input")[0]
    slider.send_keys(Keys.END)
    turned = latent.copy()
    turned[0, int(slider.get_attribute("data-unit") or "")] = float(slider.get_attribute("max") or "")
    page.until(lambda: decoded_is(turned))
    _, answer = playground.ask("map", {"model": "mnist-undercomplete"})
    ActionChains(page.driver).move_to_element(page["map"]).click().perform()
    points = np.array(answer["points"])
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    page.until(lambda: decoded_is(np.array([answer["mean"]]) + middle @ np.array(answer["axes"])))
    page["reset"].click()
    page.until(lambda: decoded_is(latent))


def test_the_page_says_that_the_service_is_away_and_comes_back_with_it(
    driver: webdriver.Chrome, digit_models: Path, tmp_path: Path
) -> None:
    page = Page(driver)
    shutil.copytree(digit_models / "mnist-undercomplete", tmp_path / "mnist-undercomplete")
    with ServerProcess(tmp_path) as server:
        playground = Playground(server.address)
        page.load(playground.url)
    try:
        page["fresh"].click()
        page.until(lambda: page["status"].get_attribute("data-state") == "away")
        assert page["banner"].is_displayed()
        assert server.address in page["banner"].text
        assert page.tile("mnist-undercomplete").text.endswith("no answer")
        with ServerProcess(tmp_path, "--port", server.address.rpartition(":")[2]):
            page.until(lambda: page["status"].get_attribute("data-state") == "up")
            assert not page["banner"].is_displayed()
            page.until(lambda: "no answer" not in page["tiles"].text and page.settled())
    finally:
        page.driver.get("about:blank")
        playground.close()
