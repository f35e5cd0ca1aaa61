"""The page of a preview as tests read it: its samples from the markup, and the page as a real browser shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium in PATH (Debian: apt install chromium)")
BROWSER = "not an origin"  # what asks for what no page did, in the log
VOID = {"meta", "img", "input", "option", "link", "br"}


@dataclass
class Article:
    stage: str
    source: str
    kind: str
    hidden: bool
    text: str = ""
    spans: list[tuple[bool, int, int, str]] = field(default_factory=list)  # learned, start, stop, text
    chips: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


class Dom(HTMLParser):
    """Articles of a page, every tag with its attributes, and its texts outside of script and style."""

    def __init__(self, page: str):
        super().__init__()
        self.articles: list[Article] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.title = ""
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        named = {key: value or "" for key, value in attrs}
        self.tags.append((tag, named))
        if tag not in VOID:
            self._open.append((tag, named))
        if tag == "article":
            place = (named[f"data-{key}"] for key in ("stage", "source", "kind"))
            self.articles.append(Article(*place, "hidden" in named))
        elif tag == "img" and self.articles:
            self.articles[-1].pictures.append(named["src"])
        elif "data-tokens" in named:
            start, stop = map(int, named["data-tokens"].split("-"))
            self.articles[-1].spans.append((tag == "mark", start, stop, ""))
        elif named.get("class") == "chip" and self.articles:
            self.articles[-1].chips.append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        inside = [tag for tag, _ in self._open]
        if inside[-1:] == ["title"]:
            self.title += data
        if "article" not in inside:
            return
        article = self.articles[-1]
        article.text += data
        for _, named in self._open:
            if "data-tokens" in named:
                article.spans[-1] = (*article.spans[-1][:3], article.spans[-1][3] + data)
            elif named.get("class") == "chip":
                article.chips[-1] += data

    def figures(self, name: str) -> list[dict[str, str]]:
        return [named for tag, named in self.tags if named.get("class") == name]


def browse(page: Path, hash_: str, folder: Path) -> tuple[Dom, list[str], list[str]]:
    """The page's DOM after its script ran, what it wrote to the console, and addresses that were asked for."""
    assert CHROMIUM
    log = folder / "net.json"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=2000", "--dump-dom"]
    command = [CHROMIUM, *flags, f"{page.as_uri()}#{hash_}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [event["url"] for event in events if event.get("initiator", BROWSER) != BROWSER]
    return Dom(done.stdout), console, [address for address in asked if not address.startswith("data:")]
