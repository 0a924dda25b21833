"""A browser that plays what adaptive_server sends, in a process of its own: `python adaptive_viewer.py <url>`.

It says "playing" once there are pictures, and at a line of input prints what it has seen, as JSON.
"""

from __future__ import annotations

import json
import sys

from playwright.sync_api import sync_playwright

from browser.conftest import FLAGS, find_browser


def main() -> None:
    """Play."""
    with sync_playwright() as playwright:
        flags = [*FLAGS, "--disable-features=WebRtcHideLocalIpsWithMdns"]
        path = find_browser(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        page = browser.new_page()
        page.goto(sys.argv[1])
        page.wait_for_function("() => frames.length > 30", timeout=30_000)
        print("playing", flush=True)
        sys.stdin.readline()
        print(json.dumps(page.evaluate("() => ({frames, samples})")), flush=True)
        browser.close()


main()
