"""How long a click takes at the desk, measured in the page of a real browser: click to drawn mask, turn of the dial.

    python -m benchmarks.desk --images photos/ --checkpoint RUN --output desk.json

A server of `grainmill annotate` and headless Chromium run on this machine. Each of `--clicks` clicks is one of its own,
at a seeded pixel of a picture that is encoded; the page measures from the event to the second animation frame after the
mask was drawn. A correction is a second click on it. The dial is turned through its 19 places after every click.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PATIENCE_S = 120


def main() -> None:
    """Prints and writes medians and spreads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--checkpoint", required=True, help="of `grainmill annotate`; tree for none")
    parser.add_argument("--clicks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    given = parser.parse_args()
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pipeline", "annotate", given.images, "--checkpoint", given.checkpoint, "--output",
            f"{folder}/out", "--no-browser",
        ]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            measured = measure(server.stdout.readline().strip(), given.clicks, random.Random(given.seed), folder)
        finally:
            server.terminate()
            server.wait()
    content = {
        "command": f"python -m benchmarks.desk --checkpoint {Path(given.checkpoint).name} --clicks {given.clicks}",
        "cores": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "milliseconds": {name: summary(values) for name, values in measured.items()},
    }
    given.output.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


def summary(values: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {
        "count": len(values), "least": min(values), "quartile_1": low, "median": middle, "quartile_3": high,
        "most": max(values),
    }  # fmt: skip


def measure(url: str, clicks: int, chance: random.Random, profile: str) -> dict[str, list[float]]:
    """Milliseconds of first clicks, of corrections, and of turns of the dial."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, "--window-size=1300,900", f"--user-data-dir={profile}/profile"):
        options.add_argument(flag)
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        page.get(url)
        count = wait(page, "desk.picture && desk.info.pictures.length")
        first: list[float] = []
        second: list[float] = []
        for number in range(clicks):
            if number:
                page.execute_script("openPicture(arguments[0])", number % count)
            wait(page, f"desk.picture && desk.number === {number % count}")
            time.sleep(0.3)  # what is encoded ahead is at work while somebody looks; a click comes later
            for taken in (first, second):
                taken.append(click(page, chance.random(), chance.random()))
            page.execute_script("for (let place = 0; place < desk.info.dial.length; place++) setDial(place)")
        dial = page.execute_script("return performance.getEntriesByName('desk-dial').map((each) => each.duration)")
        return {"first click": first, "correction": second, "turn of the dial": dial}
    finally:
        page.quit()


def click(page: Any, across: float, down: float) -> float:
    """A click at a share of the picture's width and height: milliseconds until its mask was drawn."""
    page.execute_script("""
        performance.clearMeasures("desk-answer");
        const box = byId("canvas-box").getBoundingClientRect();
        const at = { clientX: box.left + arguments[0] * box.width, clientY: box.top + arguments[1] * box.height };
        byId("canvas-box").dispatchEvent(new MouseEvent("click", { bubbles: true, ...at }));
    """, across, down)  # fmt: skip
    return float(wait(page, "performance.getEntriesByName('desk-answer')[0]?.duration"))


def wait(page: Any, script: str) -> Any:
    """What an expression gives as soon as it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = page.execute_script(f"return {script}")
        if found:
            return found
        time.sleep(0.02)
    raise SystemExit(f"never true: {script}")


if __name__ == "__main__":
    main()
