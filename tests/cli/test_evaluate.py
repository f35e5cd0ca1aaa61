"""`evaluate` from its command line: figures, predictions and page; continued, on any ranks, refused with a remedy."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs
import torch
from PIL import Image
from runs import TINY
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from llava_train.cli.main import main
from llava_train.data.samples.sample import Sample
from llava_train.evaluate.page import Page
from llava_train.evaluate.prediction import Prediction
from llava_train.evaluate.scoring import wilson
from llava_train.evaluate.summary import AnswerWithLoss, rows
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.records.media_file import PackedFile
from llava_train.text.chat_template import chat_template

NASTY = '</script><script>alert("1")</script> & <b>'
FEW = "max_new_tokens=3"


def records() -> list[dict]:
    image = "images/red_disc.png"
    return [
        {"id": "any", "image": image, **turns(f"<image>\nWhat is it? {NASTY}"), "answers": ["disc", NASTY]},
        {"id": "choice", **turns("?\nA. x\nB. y", "B")},
        {"id": "text", **turns("One?", "two words")},
        {"id": "video", "video": "clip.mp4", **turns("<video>?"), "answers": ["1"]},
        *[{"id": f"n{i}", "image": image, **turns(f"<image> {i}?"), "answers": ["1"]} for i in range(6)],
    ]


def turns(*texts: str) -> dict:
    return {"conversations": [{"from": who, "value": text} for who, text in zip(("human", "gpt"), texts, strict=False)]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, a mixture of two sources, and their evaluation in `done`."""
    root = tmp_path_factory.mktemp("evaluate")
    make_tiny(root / "tiny", tied=False)
    (root / "own.json").write_text(json.dumps(records()[:4]))
    (root / "more.jsonl").write_text("\n".join(map(json.dumps, records()[4:])))
    sources = {name: f"{{file: {root / name}, media_root: {TINY}}}" for name in ("own.json", "more.jsonl")}
    (root / "mix.yaml").write_text("sources:\n" + "".join(f"  {Path(n).stem}: {s}\n" for n, s in sources.items()))
    assert main(["evaluate", *words(root), f"out={root / 'done'}"]) == 0
    return root


def words(root: Path, *more: str) -> list[str]:
    return [f"model.init={root / 'tiny'}", f"data.file={root / 'mix.yaml'}", FEW, "batch_size=2", *more]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_every_question_is_scored_in_order(place):
    found = lines(place / "done/predictions.jsonl")
    assert [f["record"].split("id ")[-1].rstrip(")") for f in found] == [record["id"] for record in records()]
    assert [f["type"] for f in found] == ["any_of", "choice", "exact", "any_of", *["any_of"] * 6]
    assert {f["source"] for f in found} == {"own", "more"}
    figures = json.loads((place / "done/scores.json").read_text())
    assert [(r["source"], r["type"], r["count"]) for r in figures] == [
        ("more", "any_of", 6),
        ("own", "any_of", 2),
        ("own", "choice", 1),
        ("own", "exact", 1),
        ("own", "all", 4),
        ("all", "any_of", 8),
        ("all", "all", 10),
    ]
    loss = sum(f["loss"] for f in found) / sum(f["tokens"] for f in found)
    assert figures[-1]["loss"]["value"] == pytest.approx(loss)
    assert figures[-1]["loss"]["low"] < loss < figures[-1]["loss"]["high"]


def test_the_loss_is_transformers_own(place):
    """Of the text question: ids by the chat template, labels on the answer and its end."""
    found = lines(place / "done/predictions.jsonl")[2]
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny")
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(place / "tiny").eval()
    asked = [{"role": "user", "content": [{"type": "text", "text": "One?"}]}]
    prompt = tokenizer.apply_chat_template(
        asked, chat_template=chat_template("qwen", "front"), tokenize=False, add_generation_prompt=True
    )
    before, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, "two words<|im_end|>"))
    ids = torch.tensor([before + answer])
    labels = torch.tensor([[-100] * len(before) + answer])
    with torch.no_grad():
        mean = model(input_ids=ids, labels=labels).loss
    assert found["tokens"] == len(answer)
    assert found["loss"] / found["tokens"] == pytest.approx(float(mean), rel=1e-5)


def test_what_was_answered_is_not_asked_again_and_the_rest_is(place, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    out.mkdir()
    (out / "settings.json").write_bytes((place / "done/settings.json").read_bytes())
    answers = (place / "done/answers.jsonl").read_text().splitlines(keepends=True)
    (out / "answers.jsonl").write_text("".join([*answers[:7], answers[7][:9]]))  # cut off within a line
    assert main(["evaluate", *words(place), f"out={out}"]) == 0
    assert (out / "predictions.jsonl").read_text() == (place / "done/predictions.jsonl").read_text()
    first, *rest = lines(out / "answers.jsonl")
    first["predicted"] = said = "a\u2028b\u0085c"
    (out / "answers.jsonl").write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in (first, *rest)))
    monkeypatch.setattr("llava_train.evaluate.evaluation.Answerer", None)  # nothing is left to ask
    assert main(["evaluate", *words(place), f"out={out}", "score=exact", "shown=3"]) == 0
    assert {found["type"] for found in lines(out / "predictions.jsonl")} == {"exact"}
    assert lines(out / "predictions.jsonl")[0]["predicted"] == said
    page = (out / "index.html").read_text()
    assert page.count("<article") == 3
    assert "the 3 lowest of 10 questions" in page


def test_ranks_change_nothing(place, tmp_path):
    command = ["-m", "llava_train", "evaluate", *words(place), f"out={tmp_path / 'two'}"]
    runs.finish(runs.start(2, *command))
    ours, theirs = lines(tmp_path / "two/predictions.jsonl"), lines(place / "done/predictions.jsonl")
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-5)
        assert mine == other


def test_the_page_lets_nothing_out_of_its_quotes(place):
    page = (place / "done/index.html").read_text()
    tags: list[tuple[str, dict]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    Reader().feed(page)
    assert [tag for tag, _ in tags].count("script") == 1
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; &lt;b&gt;") >= 2
    sources = [attrs["src"] for _, attrs in tags if "src" in attrs]
    assert len(sources) == 8  # a strip of the video among them
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|<link", page)
    assert [tag for tag, _ in tags].count("article") == 10


def test_the_page_begins_with_the_lowest_scores():
    said = [Prediction(f"question {i}", "a", "b", "", [], []) for i in range(4)]
    samples = [Sample(str(i), "own", []) for i in range(4)]
    page = Page(10**6, 60.0).render("title", [], said, samples, [1.0, 0.3, 0.0, 0.0], shown=3)
    cards = re.findall(r"data-verdict=(\w+).*?question (\d)", page)
    assert cards == [("wrong", "2"), ("wrong", "3"), ("partly", "1")]


def test_the_page_shows_images_within_other_files_and_says_which_cannot_be_read():
    content = io.BytesIO()
    Image.new("RGB", (20, 10)).save(content, "PNG")
    files = [PackedFile(Path(), 0, len(image), name, image) for name, image in (("a", content.getvalue()), ("b", b""))]
    said, sample = Prediction("?", "a", "b", "", [], []), Sample("0", "own", [], files)
    page = Page(10**6, 60.0).render("title", [], [said], [sample], [0.0], shown=1)
    assert 'alt="a" src="data:image/jpeg;base64,' in page
    assert "b cannot be read" in page


def test_a_group_of_the_same_questions_is_told_once():
    one = Prediction("?", "a", "a", "", [], [], source="own")
    [row] = rows([one, one], [1.0, 0.0], [AnswerWithLoss("a", 2.0, 1), AnswerWithLoss("a", 4.0, 2)], seed=0)
    assert (row.source, row.type, row.count, row.score) == ("own", "exact", 2, wilson(1, 2))
    assert row.loss.value == 2.0


def test_answers_of_other_settings_are_refused_with_a_folder_to_take(place, capsys):
    assert main(["evaluate", *words(place), f"out={place / 'done'}", "limit=1"]) == 2
    told = capsys.readouterr().err
    assert "limit: 1" in told
    assert "was begun with 0" in told
    assert "out=DIR" in told


def test_without_a_folder_each_setting_has_its_own(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for limit in (1, 2):
        assert main(["evaluate", *words(place), f"limit={limit}"]) == 0
    assert len(list(tmp_path.glob("evaluations/mix-*/index.html"))) == 2


@pytest.mark.parametrize(
    ("word", "key", "remedy"),
    [
        ("model.init=", "model.init", "DIR_OR_HUB_NAME"),
        ("data.file=", "data.file", ".jsonl"),
        ("data.file=a.txt", "data.file", ".jsonl"),
        ("data.file=none.json", "data.file", "check data.file"),
        ("adapter=none", "adapter", "STAGE/adapter"),
        ("limit=-1", "limit", ">= 0"),
        ("batch_size=0", "batch_size", ">= 1"),
        ("max_new_tokens=0", "max_new_tokens", ">= 1"),
        ("seed=-1", "seed", ">= 0"),
        ("shown=-1", "shown", ">= 0"),
        ("tolerance=5.0", "tolerance", "0.05 is 5 %"),
        ("score=vqa", "score", "any_of"),
        ("out={root}/mix.yaml", "out", "out=DIR"),
    ],
)
def test_a_fault_names_its_key_and_remedy(place, capsys, word, key, remedy):
    name = word.partition("=")[0]
    kept = [w for w in words(place) if not w.startswith(f"{name}=")]
    assert main(["evaluate", *kept, word.replace("{root}", str(place))]) == 2
    told = capsys.readouterr().err
    assert f"1. {key}: " in told
    assert remedy in told
    assert "2. " not in told
