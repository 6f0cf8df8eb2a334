"""The page in a browser: its answers beside the command line's, its look, its keyboard and its limits.

    kvcalc page -o kvcalc.html
    pip install selenium && npm pack axe-core        # chromium and chromium-driver from Debian
    python tests/tools/page.py kvcalc.html --axe node_modules/axe-core/axe.min.js --pictures pictures/

Random settings are opened by their address and read from the page's text; ``kvcalc fit`` is asked the command line that
the page itself shows. Says what differs, and ends as 1 where anything does.
"""

# ruff: noqa: E501, S311, T201 - a script that prints what differs; its randomness must repeat; JavaScript is long

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kvcalc.cli.app import run

WIDTHS = (390, 768, 1440)
HOSTILE = (
    "#model=<img src=x onerror=document.title='in'>&device=\"><script>document.title='in'</script>",
    "#c=1e9&b=-1&tp=__proto__&engine=constructor&kv=toString&u=200&memory=9e99",
    "#model=%3Cscript%3Edocument.title%3D'in'%3C/script%3E&version='-alert(1)-'",
)


def browser(width: int = 1440, *, dark: bool = False) -> webdriver.Chrome:
    """A headless Chromium without a network."""
    options = Options()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    return driver


def text(driver: webdriver.Chrome, element: str) -> str:
    return str(driver.execute_script(f"return document.getElementById('{element}').textContent"))


def opened(driver: webdriver.Chrome, page: str, address: str = "") -> float:
    """Open the page; milliseconds until its verdict stands."""
    driver.get("about:blank")
    began = time.perf_counter()
    driver.get(page + address)
    while not text(driver, "verdict"):
        time.sleep(0.002)
    return 1000 * (time.perf_counter() - began)


def settings(driver: webdriver.Chrome, number: int, random_: random.Random) -> Iterator[dict[str, Any]]:
    known = driver.execute_script(
        """return {models: Object.keys(data.models), devices: data.devices.map((each) => each.name), engines: data.engines,
            drafts: Object.fromEntries(Object.entries(data.models).map(([name, each]) => [name, each.drafts]))}"""
    )
    for _ in range(number):
        engine = random_.choice(list(known["engines"]))
        about = known["engines"][engine]
        asked = {
            "model": random_.choice(known["models"]),
            "engine": engine,
            "device": random_.choice(known["devices"]),
            "tp": str(random_.choice([1, 1, 1, 2, 4])),
            "c": str(int(2 ** random_.uniform(5, 18))),
            "b": str(random_.choice([1, 1, random_.randint(2, 64)])),
        }
        for key, values in (("kv", about["kv_formats"]), ("weights", about["weight_formats"])):
            if random_.random() < 0.3 and values:
                asked[key] = random_.choice(values)
        # One of a version, an option and a draft; numbers that formulas take go with each.
        options = []
        match random_.choice(["", "version", "option", "draft"]):
            case "version" if about["releases"]:
                asked["version"] = random_.choice(random_.choice(about["releases"]))
            case "option" if about["picks"]:
                options.append("=".join(random_.choice(about["picks"])))
            case "draft" if known["drafts"][asked["model"]]:
                asked["draft"] = random_.choice(known["drafts"][asked["model"]])
        options += [f"{name}={int(2 ** random_.uniform(6, 15))}" for name in about["inputs"] if random_.random() < 0.2]
        asked["E"] = options
        if random_.random() < 0.2:
            asked["u"] = random_.choice(["80", "92.5"])
        yield asked


def on_the_page(driver: webdriver.Chrome) -> dict[str, Any]:
    """What a reader sees, as numbers."""
    shown = driver.execute_script(
        """return {
            verdict: document.getElementById("verdict").textContent,
            more: document.getElementById("verdict-more").textContent,
            legend: [...document.querySelectorAll("#account .exact")].map((each) => each.textContent),
            names: [...document.querySelectorAll("#account .legend span:nth-of-type(3n+1)")].map((each) => each.textContent),
            kv: document.querySelector("#figures dd small")?.textContent ?? "",
            line: document.querySelector("#lines pre").textContent,
            server: document.querySelectorAll("#lines pre").length > 2
                ? document.querySelectorAll("#lines pre")[1].textContent : null,
        }"""
    )
    return dict(shown)


def number_in(words: str) -> int | None:
    found = re.search(r"[\d,]+", words)
    return int(found[0].replace(",", "")) if found else None


def compared(driver: webdriver.Chrome, page: str, asked: dict[str, Any]) -> list[str]:
    """What differs between the page and the command line for one setting."""
    driver.execute_script(f"location.hash = {json.dumps('#' + urlencode(asked, doseq=True))}")
    time.sleep(0.01)
    shown = on_the_page(driver)
    words, output = shown["line"].split()[1:], StringIO()
    with redirect_stdout(output), redirect_stderr(StringIO()):
        code = run([*words, "--format", "json"])
    if shown["verdict"] == "No answer":
        return [] if code == 2 or "this page" in shown["more"] else [f"the page refuses: {shown['more']}"]
    if code == 2:
        return ["the command line refuses, and the page does not"]
    answer = json.loads(output.getvalue())
    capacity, pool, row = answer["capacity"], answer["pool"], answer["rows"][0]
    differences = []
    for name, ours, theirs in (
        ("fits", shown["verdict"].startswith("Fits"), capacity["fits"]),
        ("KV cache", number_in(shown["kv"]), row["kv_cache"]["bytes"]),
        ("weights", number_in(shown["legend"][0]), pool["weights_bytes"]),
        ("server", shown["server"], answer["server_command"]),
        (
            "longest",
            _bound(shown["more"], r"Longest context at batch [\d,]+: ([\d,]+|nothing)"),
            capacity["max_context"],
        ),
        ("sequences", _bound(shown["more"], r"most sequences: ([\d,]+|any)"), capacity["max_batch_size"]),
    ):
        if ours not in ("unsaid", theirs):
            differences.append(f"{name}: {ours} on the page, {theirs} on the command line")
    return differences


def _bound(words: str, pattern: str) -> int | str | None:
    found = re.search(pattern, words)
    if found is None:
        return "unsaid"
    return int(found[1].replace(",", "")) if found[1][0].isdigit() else None


def axe(driver: webdriver.Chrome, script: str) -> list[str]:
    driver.execute_script(script)
    found = driver.execute_async_script("const done = arguments[0]; axe.run().then((each) => done(each.violations));")
    return [f"{each['id']}: {each['help']} ({len(each['nodes'])}): {each['nodes'][0]['html'][:200]}" for each in found]


def keyboard(driver: webdriver.Chrome) -> list[str]:
    """A model is found by its words, and a slider moved, without a pointer."""
    box = driver.find_element(By.ID, "model")
    box.click()
    box.send_keys(Keys.BACKSPACE, "llama 3.1 8b", Keys.ENTER)
    model = driver.execute_script("return state.model")
    before = text(driver, "context-said")
    driver.find_element(By.ID, "context-range").send_keys(Keys.ARROW_LEFT)
    spoken = driver.find_element(By.ID, "context-range").get_attribute("aria-valuetext") or ""
    wrong = [] if model == "llama-3.1-8b" else [f"'llama 3.1 8b' chose {model}"]
    wrong += [] if text(driver, "context-said") != before and spoken.endswith("tokens") else ["the slider did not move"]
    return wrong


def moved(driver: webdriver.Chrome) -> list[float]:
    """Milliseconds from a slider's move to the numbers, and to everything below them."""
    script = """const done = arguments[0], range = document.getElementById("context-range"), found = [];
        range.value = String(Number(range.max) - 3);
        const began = performance.now();
        range.dispatchEvent(new Event("input"));
        found.push(performance.now() - began);
        setTimeout(() => requestAnimationFrame(() => done([...found, performance.now() - began])), 41);"""
    return list(driver.execute_async_script(script))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--pictures", type=Path, help="folder for pictures at three widths, light and dark")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    page, size = given.page.resolve().as_uri(), given.page.stat().st_size
    wrong = [] if size < 3_000_000 else [f"{size:,} bytes: a page has at most three megabytes"]
    driver = browser()
    times = sorted(opened(driver, page) for _ in range(5))
    print(f"opened in {times[2]:.0f} ms ({size:,} bytes)")
    settled = sorted(moved(driver) for _ in range(9))[4]
    print(f"a slider's move: {settled[0]:.1f} ms to the numbers, {settled[1]:.0f} ms to the engines and the curve")
    random_ = random.Random(given.seed)
    for asked in settings(driver, given.count, random_):
        wrong += [f"{asked}: {each}" for each in compared(driver, page, asked)]
    print(f"{given.count} settings compared, {len(wrong)} differences")
    wrong += keyboard(driver)
    address, verdict = driver.execute_script("return location.hash"), text(driver, "verdict")
    opened(driver, page, address)
    wrong += [] if text(driver, "verdict") == verdict else [f"{address} reopened is another answer"]
    for address in HOSTILE:
        opened(driver, page, address)
        if driver.title == "in" or driver.execute_script("return document.querySelectorAll('img, script').length") != 2:
            wrong.append(f"{address} got into the page")
    driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    wrong += [f"{each['level']} {each['message']}" for each in driver.get_log("browser")]
    driver.quit()
    for width in WIDTHS:
        for dark in (False, True):
            driver = browser(width, dark=dark)
            opened(driver, page)
            time.sleep(0.3)
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            wrong += [] if wide <= width else [f"{width} pixels: the page is {wide} wide"]
            wrong += [f"{width}: {each}" for each in axe(driver, given.axe.read_text())] if given.axe else []
            if given.pictures:
                given.pictures.mkdir(exist_ok=True)
                height = driver.execute_script("return document.documentElement.scrollHeight")
                clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
                picture = driver.execute_cdp_cmd(
                    "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
                )
                name = f"{width}-{'dark' if dark else 'light'}.png"
                (given.pictures / name).write_bytes(base64.b64decode(picture["data"]))
            driver.quit()
    print("\n".join(dict.fromkeys(wrong)) or "nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
