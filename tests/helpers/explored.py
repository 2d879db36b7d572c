"""explore.py as a process, and a Chromium that looks at its page."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.faults import PATH, ROOT

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextlib.contextmanager
def explored(*argv: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of its page, and the process."""
    command = [sys.executable, "pipelines/explore.py", *argv, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | PATH, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"at (http://\S+)", process.stdout.readline())
            assert found is not None
            yield found[1], process
        finally:
            process.terminate()


@contextlib.contextmanager
def chromium(**preferences: Any) -> Iterator[Any]:
    """A headless Chromium, driven by selenium; the test is skipped, with the reason, where there is none."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed here")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    assert selenium
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1400,900", "--enable-unsafe-swiftshader"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()
