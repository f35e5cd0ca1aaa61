"""`preview` through the real command line, on a folder with a config, a tokenizer and no tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from chat_templates import RELEASED
from safetensors.numpy import save_file

from llava_train.cli.main import main
from llava_train.model.loading.tiny_model import byte_tokenizer

ROOT = Path(__file__).parents[2]
CONFIG = {
    "model_type": "llava_onevision",
    "vision_config": {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
    "text_config": {"model_type": "qwen2"},
    "image_token_index": 259,
    "video_token_index": 260,
}


@pytest.fixture(scope="module")
def init(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({}, folder / "model.safetensors")
    return folder


@pytest.fixture
def preview(init, tmp_path, capsys):
    def run(*words: str) -> list[dict]:
        out = tmp_path / "out" / "shown.jsonl"
        options = ["preview.format=jsonl", f"preview.out={out}", "preview.stage=onevision"]
        assert main(["preview", "+recipe=tiny", f"model.init={init}", *options, *words]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def test_jsonl_holds_every_sample_with_its_visuals(preview, capsys):
    shown = {record["id"]: record for record in preview("preview.count=0")}
    assert len(shown) == 17
    red = shown["image-red_disc"]
    assert red["visual"] == [{"kind": "anyres", "width": 64, "height": 64, "grid": [2, 2], "tiles": 5, "tokens": 88}]
    assert red["input_ids"].count(259) == 88
    answer = byte_tokenizer()("a red disc")["input_ids"]
    assert (red["source"], red["stage"]) == ("tiny", "onevision")
    assert [label for label in red["labels"] if label != -100] == [*answer, 258]
    assert shown["clip"]["input_ids"].count(260) == shown["clip"]["visual"][0]["tokens"]
    assert [visual["kind"] for visual in shown["both"]["visual"]] == ["anyres", "video"]
    note, summary = capsys.readouterr().out.splitlines()[-2:]
    assert summary == "17 samples: tiny 17; 0 refused; 1 that no chat message renders as trained"
    assert note.endswith("stays text in 1 samples, such as tiny, record 7 (id text-tag)")


def test_refused_samples_appear_with_their_reason(preview, tmp_path, capsys):
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    good = (ROOT / "data" / "tiny" / "images" / "red_box.png").read_bytes()
    (tmp_path / "whole.png").write_bytes(good)
    (tmp_path / "cut.png").write_bytes(good[:-40])
    records = [
        {"id": "missing", "image": "none.png", "conversations": turns},
        {"id": "cut", "image": "cut.png", "conversations": turns},
        {"id": "role", "conversations": [{"from": "narrator", "value": "x"}]},
        {"id": "moved", "image": "whole.png", "conversations": [{**turns[0], "value": "see <image> there"}, turns[1]]},
        {
            "id": "inline",
            "image": ["whole.png"] * 2,
            "conversations": [{**turns[0], "value": "<image>, <image>"}, turns[1]],
        },
    ]
    (tmp_path / "own.json").write_text(json.dumps(records))
    shown = preview("preview.count=0", f"data.file={tmp_path}/own.json", f"data.root={tmp_path}")
    assert [(record["id"], "error" in record) for record in shown] == [
        ("missing", True),
        ("cut", True),
        ("role", True),
        ("moved", False),
        ("inline", False),
    ]
    for record, reason in zip(shown, ("missing file", "unreadable image", "bad record"), strict=False):
        assert reason in record["error"]
        assert "own, record" in record["error"]
    summary = capsys.readouterr().out.splitlines()[-1]
    assert "own 5; 3 refused: missing file 1, unreadable image 1, bad record 1; 1 that no chat message" in summary


def test_count_limits_each_stage(preview):
    assert [record["id"] for record in preview("preview.count=2")] == ["image-red_disc", "image-green_disc"]


def test_page_lies_in_the_run_folder(init, tmp_path, capsys):
    words = [f"model.init={init}", f"run.dir={tmp_path}/run", "preview.format=html", "preview.count=2"]
    assert main(["preview", "+recipe=tiny", *words]) == 0
    page = tmp_path / "run" / "preview.html"
    told, summary = capsys.readouterr().out.splitlines()[-2:]
    assert told.startswith(f"{page} (0.")
    assert summary.startswith("4 samples: tiny 4; 0 refused")
    assert [path.name for path in page.parent.iterdir()] == ["preview.html"]
    assert page.read_text().count("<article ") == 4


def test_text_shows_supervised_words_and_visual_counts(init, capsys):
    words = ["preview.stage=onevision", "preview.count=1"]
    assert main(["preview", "+recipe=tiny", f"model.init={init}", *words]) == 0
    shown = capsys.readouterr().out
    assert "[[a red disc<|im_end|>]]" in shown
    assert "<anyres 64x64: 2x2 grid, 5 tiles, 88 tokens>\nWhat is shown?<|im_end|>" in shown


def llama_folder(out: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "golden" / "llama_tiny_tokenizer", out)
    (out / "config.json").write_text(json.dumps({**CONFIG, "image_token_index": 1024, "video_token_index": 1025}))
    save_file({}, out / "model.safetensors")
    return out


def test_vicuna_is_shown_with_the_tags_added(preview, tmp_path, capsys):
    folder = llama_folder(tmp_path / "llama")
    words = (f"model.init={folder}", "stages.onevision.template=vicuna", "preview.count=0")
    shown = {record["id"]: record for record in preview(*words)}
    red = shown["image-red_disc"]
    assert red["input_ids"][0] == 1
    assert red["input_ids"].count(1024) == 88
    assert [label for label in red["labels"] if label != -100][-1] == red["input_ids"][-1] == 2
    summary = capsys.readouterr().out.splitlines()[-1]
    assert summary == "17 samples: tiny 17; 0 refused; 1 that no chat message renders as trained"


def test_template_of_the_checkpoint_is_shown(init, preview, tmp_path, capsys):
    folder = tmp_path / "released"
    shutil.copytree(init, folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": RELEASED}))
    words = [f"model.init={folder}", "stages.onevision.template=checkpoint"]
    shown = {record["id"]: record for record in preview(*words, "preview.count=0")}
    red = shown["image-red_disc"]
    assert [label for label in red["labels"] if label != -100] == [*byte_tokenizer()("a red disc")["input_ids"], 258]
    assert red["input_ids"][:8] == byte_tokenizer()("<|im_start|>user <image><image>")["input_ids"]
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("17 samples: tiny 17; 0 refused; ")
    assert main(["preview", "+recipe=tiny", *words, "preview.stage=onevision", "preview.count=1"]) == 0
    shown_text = capsys.readouterr().out
    assert "<|im_end|><|im_start|>assistant\n[[a red disc<|im_end|>]]" in shown_text


def test_checkpoint_without_a_chat_template_is_refused(init, capsys):
    words = [f"model.init={init}", "stages.projector.template=checkpoint"]
    for verb in ("check", "preview"):
        assert main([verb, "+recipe=tiny", *words]) == 2
        told = capsys.readouterr().err
        assert "stages.projector.template: the checkpoint's chat template: none: neither its processor nor" in told
        assert "-> name a template instead, as qwen, or put a chat_template.jinja into" in told


def test_template_of_another_model_is_refused(init, tmp_path, capsys):
    words = ["preview", "+recipe=tiny", "preview.stage=onevision"]
    assert main([*words, f"model.init={init}", "stages.onevision.template=vicuna"]) == 2
    error = capsys.readouterr().err
    assert "stages.onevision.template: vicuna needs <s> and </s>, which the model's tokenizer lacks" in error
    assert "stages.onevision.template=plain or qwen" in error
    assert main([*words, f"model.init={llama_folder(tmp_path / 'llama')}"]) == 2
    assert "qwen needs <|im_start|> and <|im_end|>" in capsys.readouterr().err


def test_ids_that_differ_from_the_config_are_refused(init, tmp_path, capsys):
    other = shutil.copytree(init, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({**CONFIG, "image_token_index": 7}))
    assert main(["preview", "+recipe=tiny", f"model.init={other}"]) == 2
    error = capsys.readouterr().err
    assert "model.init: the tokenizer's <image> has id 259, config.json says image_token_index = 7" in error
    assert "write image_token_index = 259" in error


def test_nothing_is_left_where_a_preview_fails(init, tmp_path, capsys):
    (tmp_path / "own.json").write_text("{")
    out = tmp_path / "shown.jsonl"
    words = [f"data.file={tmp_path}/own.json", f"data.root={tmp_path}", f"preview.out={out}", "preview.format=jsonl"]
    assert main(["preview", "+recipe=tiny", f"model.init={init}", *words]) == 2
    assert "unreadable file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    for name in ("red_box", "red_disc"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        shutil.copy(ROOT / "data" / "tiny" / "images" / f"{name}.png", tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def test_table_is_shown_wherever_it_lies(preview, pictures, capsys):
    (pictures / "q.csv").write_text(
        "image;answer;split\nred_box/red_box.png;a box;train\nno.png;a;train\nred_disc/red_disc.png;b;test\n"
    )
    box, missing = preview("data.file=q.csv@train", f"data.root={pictures}")
    assert box["visual"][0]["width"] == 64
    assert (box["source"], box["id"]) == ("q", "line 2")
    assert missing["error"].startswith("q, record 1 (id line 3): missing file ")
    words = [f"data.root={pictures}", "stages.projector.template=qwen", "stages.projector.global_batch_size=1"]
    words += ["stages.onevision.global_batch_size=1"]
    assert main(["check", "+recipe=tiny", "data.file=q.csv@test", *words]) == 0
    assert "q.csv@test: 1 samples" in capsys.readouterr().out
    assert main(["check", "+recipe=tiny", "data.file=q.csv", *words]) == 2
    told = capsys.readouterr().err
    assert f"data.file: source q: {pictures}/q.csv: column split has rows 2 of train, 1 of test: name" in told


def test_folder_of_pictures_is_shown(preview, pictures, capsys):
    box, _ = preview(f"data.file={pictures}")
    assert (box["source"], box["id"]) == ("pictures", "red_box/red_box.png")
    assert [label for label in box["labels"] if label != -100] == [*byte_tokenizer()("red box")["input_ids"], 258]
    assert main(["check", "+recipe=tiny", f"data.file={pictures}/none"]) == 2
    assert "a folder of pictures, a mixture in .yaml" in capsys.readouterr().err


def test_what_is_passed_over_is_told_by_preview_and_check(preview, tmp_path, capsys):
    from llava_train.cli import check

    (tmp_path / "q.csv").write_text("image,answer,note\na.png,a,b\n")
    shutil.copy(ROOT / "data" / "tiny" / "images" / "red_box.png", tmp_path / "a.png")
    preview(f"data.file={tmp_path}/q.csv", f"data.root={tmp_path}")
    assert "q: passed over columns note" in capsys.readouterr().out
    words = [f"stages.{stage}.global_batch_size=1" for stage in ("projector", "onevision")]
    assert check.run(["+recipe=tiny", f"data.file={tmp_path}/q.csv", f"data.root={tmp_path}", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "q: passed over columns note"
