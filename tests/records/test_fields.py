"""What a record says about its own training is used in every format, or refused by name."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_train.data.samples.encode import Encoder
from llava_train.data.samples.parse import MediaRoots, to_sample
from llava_train.data.samples.sample import Turn
from llava_train.evaluate.questions import read_questions
from llava_train.records.readers.open import open_source, record_of
from llava_train.records.record import BadRecord
from llava_train.records.tables import read_table
from llava_train.shared.errors import DataError
from llava_train.text.chat_template import chat_template
from llava_train.text.checkpoint_template import stage_template

ROOTS = MediaRoots(Path("media"), outside=True)
BRIEF = "Answer in one word."


def turns(**of_first_answer) -> list[dict]:
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "bad", **of_first_answer},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "good"},
    ]


def sample(record: dict):
    return to_sample(record, "s", 3, ROOTS)


def roles(record: dict) -> list[str]:
    return [turn.role for turn in sample(record).turns]


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_system_text_beside_the_turns_is_the_first_turn(key, form):
    plain = sample({"messages": [{"role": "system", "content": BRIEF}, *turns()]})
    assert sample({key: BRIEF, form: turns()}) == plain
    assert sample({key: BRIEF, form: [{"role": "system", "content": BRIEF}, *turns()]}) == plain
    assert sample({key: "", "system": None, form: turns()}) == sample({form: turns()})
    greeted = [{"role": "assistant", "content": "hello"}, *turns()]
    assert sample({key: BRIEF, form: greeted}).turns == plain.turns


@pytest.mark.parametrize("said", [{"weight": 0}, {"loss": False}, {"train": False}, {"training": 0.0, "loss": None}])
def test_an_answer_that_is_not_to_be_learned_is_read_alone(said):
    typed = turns(**said)
    typed[1]["content"] = [{"type": "text", "text": "bad"}]
    for messages in (turns(**said), typed):
        assert sample({"messages": messages}).turns[1] == Turn("given", "bad")
        assert roles({"messages": messages}) == ["human", "given", "human", "gpt"]
    learned = {key: 1 for key in said}
    assert roles({"messages": turns(**learned)}) == ["human", "gpt", "human", "gpt"]
    question = [{"role": "user", "content": "q", **said}, {"role": "assistant", "content": "a"}]
    assert roles({"messages": question}) == ["human", "gpt"]


@pytest.mark.parametrize("name", ["qwen", "checkpoint", "vicuna"])
def test_only_learned_answers_have_labels_and_the_text_is_the_same(name, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", chat_template("qwen", "keep"))
    template = stage_template(name, "clean", "front", tokenizer, "key")
    encoder = Encoder(tokenizer, 151646, 151647, template, 1000)
    whole, part = (encoder.encode(sample({"messages": turns(weight=w)}), []) for w in (1, 0))
    assert part.input_ids.tolist() == whole.input_ids.tolist()
    learned = tokenizer.decode([label for label in part.labels.tolist() if label != -100])
    assert learned.split("<")[0].strip() == "good"
    assert encoder.measure(sample({"messages": turns(weight=0)})).supervised == part.num_supervised
    with pytest.raises(DataError, match="nothing supervised"):
        encoder.encode(sample({"messages": turns(weight=0)[:2]}), [])


REFUSED = {
    "differing": ({"system": "x", "system_prompt": "y", "messages": turns()}, "'system' and 'system_prompt' differ"),
    "twice": ({"system": "x", "messages": [{"role": "system", "content": "y"}, *turns()]}, "leave one of them out"),
    "no text": ({"system": ["x"], "messages": turns()}, "'system' is a list, not a text"),
    "share": ({"messages": turns(weight=0.5)}, "'weight' of a turn is 0.5: an answer is learned, 1 or true"),
    "word": ({"messages": turns(loss="false")}, "'loss' of a turn is 'false'"),
    "question": ({"messages": [{**turns()[0], "train": True}, *turns()[1:]]}, "no answer is True: only answers"),
    "contradiction": ({"messages": turns(weight=0, train=True)}, "'weight' and 'train' of a turn contradict"),
    "record": ({"weight": 0, "messages": turns()}, "'weight' is 0 for the whole record"),
    "record half": ({"weight": 0.5, "messages": turns()}, "'weight' is 0.5 for the whole record"),
    "record loss": ({"loss": False, "messages": turns()}, "'loss' is False for the whole record"),
    "record word": ({"weight": "0", "messages": turns()}, "'weight' is '0' for the whole record"),
    "record false": ({"train": "False", "messages": turns()}, "'train' is 'False' for the whole record"),
    "record share": ({"loss_weight": 0.5, "messages": turns()}, "'loss_weight' of the record is not read: call it"),
    **{
        key: ({key: "x", "messages": turns()}, f"{key!r} of the record is not read: call it 'system'")
        for key in ("System", "system_message", "systemPrompt")
    },
    **{
        key: ({"messages": turns(**{key: 0})}, f"{key!r} of a turn is not read: call it 'weight'")
        for key in ("trainable", "loss_weight", "loss_mask", "Weight", "LOSS", "doTrain", "ignore", "supervised")
    },
    **{
        key: ({key: ["x"], "messages": turns()}, f"{key!r} of the record is not trained on")
        for key in ("audios", "rejected_response", "history")
    },
    "tools": ({"tools": [{"name": "look"}], "messages": turns()}, "'tools' of the record is not trained on"),
    **{
        key: ({"messages": turns(**{key: [{"name": "look"}]})}, f"{key!r} of a turn is not trained on")
        for key in ("tool_calls", "function_call", "reasoning_content", "thinking", "masked", "train_detail")
    },
}


@pytest.mark.parametrize(("record", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_by_name(record, told):
    with pytest.raises(DataError, match="s, record 3: bad record") as caught:
        sample(record)
    assert told in caught.value.detail


def test_fields_that_hold_nothing_are_no_fault():
    messages = turns(tool_calls=[], function_call=None, reasoning_content="", weight=None)
    messages[0] |= {"trainable": None, "name": "Ada"}
    assert (
        roles(
            {
                "tools": None,
                "mask": False,
                "system_id": 7,
                "train": "train",
                "weight": 1,
                "loss": 0.31,
                "messages": messages,
            }
        )[1]
        == "gpt"
    )


def test_parts_take_the_images_that_they_number():
    parts = [*({"type": "image", "index": i, "text": None} for i in (2, 0, 1, 0)), {"type": "text", "text": "q"}]
    messages = [{"role": "user", "content": parts}, turns()[1]]
    sizes = MediaRoots(Path(), sizes=True)
    record = {"image": ["a", "b", "c"], "width": [1, 2, 3], "height": [4, 5, 6], "messages": messages}
    found = to_sample(record, "s", 0, sizes)
    assert [path.name for path in found.images] == ["c", "a", "b", "a"]
    assert found.sizes == ((6, 3), (4, 1), (5, 2), (4, 1))
    for listed in (["a", "b"], ["a", "b", "c", "d"], None):
        with pytest.raises(DataError, match=r"'image' have index 2, 0, 1, 0, of \d in 'image': name each from 0 on"):
            sample({"image": listed, "messages": messages})


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "tar"])
def test_every_format_uses_them(kind, tmp_path):
    messages = [{**turn, "weight": turn.get("weight")} for turn in turns(weight=0)]
    record = {"system_prompt": BRIEF, "messages": messages}
    table = pa.Table.from_pylist([record, {"system_prompt": None, "messages": turns(weight=1)}])
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    elif kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": None}))
        path = tmp_path
    else:
        with tarfile.open(path, "w") as tar:
            for i, row in enumerate(table.to_pylist()):
                (tmp_path / f"{i}.json").write_text(json.dumps(row))
                tar.add(tmp_path / f"{i}.json", f"{i}.json")
    said, plain = (to_sample(record_of(raw), "s", i, ROOTS) for i, raw in enumerate(open_source(path, "s")))
    assert said.turns[:3] == [Turn("system", BRIEF), Turn("human", "hi"), Turn("given", "bad")]
    assert [turn.role for turn in plain.turns] == ["human", "gpt", "human", "gpt"]


def test_parts_of_a_tar_take_the_members_that_they_number(tmp_path):
    parts = [{"type": "image", "index": 1}, {"type": "image", "index": 0}]
    record = {"messages": [{"role": "user", "content": parts}, turns()[1]]}
    (tmp_path / "0.json").write_text(json.dumps(record))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.json", "0.a.png", "0.b.png"):
            (tmp_path / name).touch()
            tar.add(tmp_path / name, name)
    (raw,) = open_source(tmp_path / "a.tar", "s")
    assert [image.name for image in record_of(raw)["image"]] == ["0.b.png", "0.a.png"]


def test_a_row_that_is_not_to_be_learned_is_refused(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("image,question,answer,Weight\na.png,q,a,0\nb.png,q,a,1\nc.png,q,a,\n")
    bad, *others = read_table(path)
    assert isinstance(bad, BadRecord)
    assert str(bad) == "q.csv, line 2, column Weight: 0, so that nothing is learned; take the row out"
    assert len(others) == 2


def test_an_answer_that_is_not_learned_may_be_asked_for(tmp_path):
    from llava_train.config.mixture import SourceConfig

    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"messages": turns(weight=0)[:2]}]))
    (question,) = read_questions({"q": SourceConfig(str(path), str(tmp_path))}, 0, 0)
    assert question.reference.answers == ["bad"]
    assert question.sample.turns[-1].role == "gpt"
