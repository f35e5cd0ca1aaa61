"""The page of a preview: what it shows is what is trained on, it can be filtered, and nothing in the data can act."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preview_dom import Dom, browse, needs_browser

from llava_train.cli.main import main
from llava_train.config.load import load
from llava_train.data.loading.stage_data import build_data
from llava_train.data.preview import measure
from llava_train.data.preview import page as preview_page
from llava_train.family.onevision.family import OneVision
from llava_train.model.loading.tiny_model import byte_tokenizer, make_tiny
from llava_train.model.start.read_model import model_dims, read_model
from llava_train.shared.html import page_template

TINY = Path(__file__).parents[3] / "data" / "tiny"
ATTACK = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HOSTILE = ATTACK + "'\" ${title} $$ &lt; \x00\x1b[2J\r\n\u202e right to left \N{PILE OF POO} <|im_end|>"


@pytest.fixture(scope="module")
def init(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("init") / "tiny")


def turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two sources: one of every kind, one of hostile texts, names and media."""
    root = tmp_path_factory.mktemp("data")
    quarters = np.zeros((64, 64, 3), dtype=np.uint8)
    quarters[:32, :32], quarters[:32, 32:], quarters[32:, :32] = (200, 20, 20), (20, 200, 20), (20, 20, 200)
    Image.fromarray(quarters).save(root / "quarters.png")
    (root / "clip.mp4").write_bytes((TINY / "clip.mp4").read_bytes())
    several = turns("<image><image> which is larger?", "the second") + turns("And which is red?", "none, or both")
    kinds = [
        {"id": "one", "image": "quarters.png", "conversations": turns("<image>\nWhat?", "four quarters")},
        {"id": "two", "image": ["quarters.png"] * 2, "conversations": several},
        {"id": "moving", "video": "clip.mp4", "conversations": turns("<video>\nWhat moves?", "a ball")},
        {"id": "words", "conversations": turns("Say it in Chinese", "可以, naïve")},
    ]
    hostile = [
        {"id": ATTACK, "conversations": turns(HOSTILE, HOSTILE)},
        {"id": "gone", "image": ATTACK, "conversations": turns(f"<image>{ATTACK}", "x")},
        {"id": "half", "conversations": turns("\ud800", "x")},
        {"id": "role", "conversations": [{"from": ATTACK, "value": "x"}]},
        ATTACK,
    ]
    (root / "kinds.json").write_text(json.dumps(kinds))
    (root / "hostile.json").write_text(json.dumps(hostile))
    mixture = {"sources": {"kinds": {"file": "kinds.json", "repeat": 3}, ATTACK: {"file": "hostile.json"}}}
    (root / "mixture.yaml").write_text(json.dumps(mixture))
    return root


def preview(init: Path, data: Path, out: Path, form: str, *words: str) -> str:
    command = ["preview", "+recipe=tiny", f"model.init={init}", f"data.file={data}/mixture.yaml", f"data.root={data}"]
    assert main([*command, f"preview.format={form}", f"preview.out={out}", "preview.count=0", *words]) == 0
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(init, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "preview.html"
    preview(init, data, out, "html")
    return out


@pytest.fixture(scope="module")
def records(init, data, tmp_path_factory) -> list[dict]:
    """The same samples as JSONL."""
    lines = preview(init, data, tmp_path_factory.mktemp("lines") / "shown.jsonl", "jsonl").split("\n")
    return [json.loads(line) for line in lines if line]


def label_runs(labels: list[int]) -> list[tuple[int, int]]:
    """Where supervised tokens start and end, one at a time."""
    starts = [i for i, label in enumerate(labels) if label != -100 and (i == 0 or labels[i - 1] == -100)]
    stops = [i + 1 for i, label in enumerate(labels) if label != -100 and [*labels, -100][i + 1] == -100]
    return list(zip(starts, stops, strict=True))


def visible(text: str) -> str:
    """As a browser gives back what was escaped."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n" else c for c in text)


def test_green_is_what_the_labels_supervise(page, records):
    articles = Dom(page.read_text()).articles
    assert len(articles) == len(records) == 18
    tokenizer = byte_tokenizer()
    for article, record in zip(articles, records, strict=True):
        if "error" in record:
            continue
        learned = [(start, stop) for is_learned, start, stop, _ in article.spans if is_learned]
        assert learned == label_runs(record["labels"])
        for _, start, stop, text in article.spans:
            assert text == visible(tokenizer.decode(record["input_ids"][start:stop])), article
        assert (
            f"{sum(stop - start for start, stop in learned)} learned of {len(record['labels'])} tokens" in article.text
        )


def test_media_are_chips_in_place_of_their_tokens(page, records):
    for article, record in zip(Dom(page.read_text()).articles, records, strict=True):
        in_spans = sum(stop - start for _, start, stop, _ in article.spans)
        visual = record.get("visual", [])
        assert in_spans + sum(v["tokens"] for v in visual) == len(record.get("labels", []))
        assert [chip.rpartition(" ")[0].rpartition(" ")[2] for chip in article.chips] == [
            str(v["tokens"]) for v in visual
        ]
        assert len(article.pictures) == sum(2 if v["kind"] == "anyres" else 1 for v in visual)


def test_kinds_and_refusals_are_told(page):
    shown = [article for article in Dom(page.read_text()).articles if article.stage == "onevision"]
    assert [article.kind for article in shown[:4]] == ["image", "multi-image", "video", "text"]
    assert [article.kind for article in shown[4:]] == ["text", *["refused"] * 4]
    assert "surrogates not allowed" in shown[6].text
    for article, reason in zip((shown[5], *shown[7:]), ("missing file", "bad record", "bad record"), strict=True):
        assert reason in article.text
        assert ATTACK in article.text.replace('\\"', '"')


def pixels(address: str) -> np.ndarray:
    assert address.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")).astype(int)


def test_tiles_lie_as_they_were_cut(page, data):
    one = next(a for a in Dom(page.read_text()).articles if (a.stage, a.kind) == ("onevision", "image"))
    overview, canvas = map(pixels, one.pictures)
    assert overview.shape[0] * 2 == canvas.shape[0] == canvas.shape[1]
    at = canvas.shape[0]
    for picture, side in ((canvas, at), (overview, at // 2)):
        for row, column, colour in (
            (1, 1, (200, 20, 20)),
            (1, 3, (20, 200, 20)),
            (3, 1, (20, 20, 200)),
            (3, 3, (0,) * 3),
        ):
            assert abs(picture[row * side // 4, column * side // 4] - colour).max() < 25


def test_pictures_keep_to_their_budget(init, data, tmp_path, monkeypatch):
    whole = Dom(preview(init, data, tmp_path / "whole.html", "html", "preview.stage=onevision"))
    monkeypatch.setattr(preview_page, "BUDGET", 1200)
    monkeypatch.setattr(preview_page, "OF_SAMPLE", 0.5)
    small = Dom(preview(init, data, tmp_path / "small.html", "html", "preview.stage=onevision"))
    lengths = [sum(len(address) for a in dom.articles for address in a.pictures) for dom in (whole, small)]
    assert lengths[1] <= 1200 < lengths[0]
    assert any("no room left on this page" in article.text for article in small.articles)


def test_epoch_is_estimated_from_a_part_of_each_source(init, data, tmp_path, monkeypatch):
    records = [{"conversations": turns("q" * 10, "a" * 10)}] * 300
    (data / "long.json").write_text(json.dumps(records))
    (data / "short.json").write_text(json.dumps(records[:50]))
    sources = {"long": {"file": "long.json"}, "short": {"file": "short.json", "repeat": 2}}
    (data / "two.yaml").write_text(json.dumps({"sources": sources}))
    monkeypatch.setattr(measure, "MEASURED", 40)
    words = [f"data.file={data}/two.yaml", "preview.count=2", "preview.stage=onevision"]
    page = preview(init, data, tmp_path / "part.html", "html", *words)
    dom = Dom(page)
    assert len(dom.articles) == 4
    assert [named["title"] for named in dom.figures("share")][:3] == [
        "75.0% of an epoch, 75.0% of what was measured"
    ] * 3
    per_sample = len(byte_tokenizer()("system\nYou are a helpful assistant.\nuser\n\nassistant\n\n")["input_ids"]) + 26
    assert f"about {float(f'{400 * per_sample:.3g}'):,.0f}" in page
    assert page.count("Estimated from the samples measured") == 1


def test_what_is_cut_is_told(init, tmp_path):
    tokenizer = byte_tokenizer()
    rest = "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n" + "b" * 900 + "<|im_end|>\n"
    records = [
        {"conversations": turns("First?", "a" * 200) + turns("And then?", "b" * 900)},
        {"conversations": turns("x", "y")},
    ]
    (tmp_path / "long.json").write_text(json.dumps(records))
    words = [f"data.file={tmp_path}/long.json", "data.too_long=cut", "preview.stage=onevision"]
    long, short = Dom(preview(init, tmp_path, tmp_path / "page.html", "html", *words)).articles
    left_out = len(tokenizer(rest)["input_ids"])
    assert f"{left_out:,} tokens cut from its end" in long.text
    assert "cut" not in short.text


@pytest.mark.parametrize("unit", [[], ["pack.unit=tokens", "pack.per_step=3", "pack.max_tokens=400"]])
def test_packs_drawn_are_those_of_training(init, tmp_path, unit):
    words = [f"stages.onevision.{word}" for word in unit] + ["preview.stage=onevision"]
    tiny = [f"data.file={TINY}/tiny.json", f"data.root={TINY}", *words]
    dom = Dom(preview(init, TINY, tmp_path / "page.html", "html", *tiny))
    bars = [tag for tag in dom.tags if tag[1].get("class") == "pack" or (tag[0] == "i" and "title" in tag[1])]
    drawn: list[list[str]] = []
    for tag, named in bars:
        if tag == "i":
            drawn[-1].append(named["title"].partition(":")[0])
        else:
            drawn.append([])
    config = load(["+recipe=tiny", f"model.init={init}", *tiny])
    stage, (settings, tokenizer) = config.stages["onevision"], read_model(config.model)
    geometry = OneVision().geometry(settings.tile_size, settings.patch_size, stage.image)
    dims = model_dims(config.model)
    data = build_data(config.data, stage, "onevision", tokenizer, geometry, dims, 0, 0, 1, tmp_path / "cache")
    trained = [list(batch.sample_ids) for step in data.step_batches(0, 2) for batch in step.batches]
    assert drawn == trained
    assert len(trained) >= 2


def test_text_is_escaped_whatever_it_holds(tmp_path):
    (tmp_path / "page.html").write_text("{{ text }}")
    shown = page_template(tmp_path / "page.html").render(text="<a href='x'>&\"\x00\x7f\ud800")
    assert shown == "&lt;a href=&#39;x&#39;&gt;&amp;&#34;␀␡?"


@needs_browser
def test_nothing_in_the_data_acts_or_leaves_the_page(page, tmp_path):
    dom, console, asked = browse(page, "stage=onevision", tmp_path)
    assert (console, asked) == ([], [])
    assert dom.title == "tiny: preview"
    assert [article.text for article in dom.articles] == [a.text for a in Dom(page.read_text()).articles]
    assert [article.spans for article in dom.articles] == [a.spans for a in Dom(page.read_text()).articles]
    images = [named for tag, named in dom.tags if tag == "img"]
    assert len(images) >= 8
    for tag, named in dom.tags:
        assert not [key for key in named if key.startswith("on") or key in ("href", "action")], (tag, named)
        assert named.get("src", "data:image/webp;").startswith("data:image/webp;")


@needs_browser
def test_browser_tells_of_requests_and_errors(tmp_path):
    (tmp_path / "page.html").write_text(
        "<img src='http://127.0.0.1:9/x'><script>document.title = 'ran'; wrong()</script>"
    )
    dom, console, asked = browse(tmp_path / "page.html", "", tmp_path)
    assert (dom.title, asked) == ("ran", ["http://127.0.0.1:9/x"])
    assert "wrong is not defined" in " ".join(console)


@needs_browser
@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("", [("projector", "image"), ("projector", "multi-image"), ("projector", "video"), ("projector", "text")]),
        ("stage=onevision&kind=video&source=kinds", [("onevision", "video")]),
        ("stage=onevision&q=QUARTERS&source=kinds", [("onevision", "image")]),
        ("stage=onevision&kind=refused&source=kinds", []),
        ("stage=none&kind=none&q=four", [("projector", "image")]),
    ],
)
def test_address_filters_the_samples(page, tmp_path, address, seen):
    dom, console, _ = browse(page, address, tmp_path)
    found = [(a.stage, a.kind) for a in dom.articles if not a.hidden and a.source == "kinds"]
    assert (found, console) == (seen, [])
    total = sum(not article.hidden for article in dom.articles)
    assert [named for _, named in dom.tags if named.get("class") == "none" and "hidden" in named] == (
        [{"class": "none", "hidden": ""}] if total else []
    )
