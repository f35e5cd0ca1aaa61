"""Tables and folders as records, and what is told of those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_train.config.rules.files import count_records
from llava_train.records.file_formats import format_of, split_of
from llava_train.records.picture_folder import read_folder
from llava_train.records.readers.open import open_source
from llava_train.records.record import BadRecord
from llava_train.records.tables import read_plain, read_table, unread_words


@pytest.fixture
def table(tmp_path):
    def write(text: str, name: str = "q.csv", encoding: str = "utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def turns(record) -> list[str]:
    return [turn["value"] for turn in record["conversations"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("delimiter", "name"), [(",", "q.csv"), (";", "q.csv"), ("\t", "q.csv"), ("\t", "q.tsv")])
def test_table_is_read_whatever_its_delimiter(table, delimiter, name, encoding):
    rows = [["Image Path", "note", "PROMPT", "Answer"], ["a.png", "x", '"Is it\r\n; or ,?"', '"A ""cat"" \u2603"']]
    path = table("\r\n".join(delimiter.join(row) for row in rows) + "\r\n\r\n", name, encoding)
    (record,) = read_table(path)
    assert record["image"] == ["a.png"]
    assert turns(record) == ["<image>\nIs it\r\n; or ,?", 'A "cat" \u2603']
    assert record["id"] == "line 2"


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("name", ["q.csv", "q.tsv"])
def test_rows_may_end_as_any_system_ends_them(table, name, end):
    cells = [["image", "question", "answer"], ["a.png", "what?", "x"], ["b.png", f'"two{end}lines"', "y"]]
    rows = [("," if name == "q.csv" else "\t").join(row) for row in cells]
    first, second = read_table(table(end.join(rows) + end, name))
    assert turns(first) == ["<image>\nwhat?", "x"]
    assert turns(second) == [f"<image>\ntwo{end}lines", "y"]


def test_a_cell_of_any_length_is_read(table):
    long = "A" * 200_000
    first, second = read_table(table(f"image\tquestion\tanswer\n{long}\tq\ta\nb.png\tq\t{long}\n", "q.tsv"))
    assert (first["image"], turns(second)[1]) == ([long], long)


def test_cell_may_hold_several_paths_and_a_row_a_video(table):
    text = "id,images,video,system,question,answer\n7,a.png; b.png|c.png,,,same?,no\n8,,v.mp4,Be brief,what?,x\n"
    images, video = read_table(table(text))
    assert (images["id"], images["image"], images["video"]) == ("7", ["a.png", "b.png", "c.png"], [])
    assert turns(images)[0] == "<image>\n<image>\n<image>\nsame?"
    assert (video["image"], video["video"]) == ([], ["v.mp4"])
    assert turns(video) == ["Be brief", "<video>\nwhat?", "x"]


def test_question_with_a_tag_stays_and_one_that_is_not_asked_is_for_a_description(table):
    (tagged,) = read_table(table("image,question,answer\na.png,See <image> there,b\n"))
    assert turns(tagged)[0] == "See <image> there"
    (captioned,) = read_table(table("file_name,text\na.png,a cat\n"))
    assert turns(captioned) == ["<image>\nDescribe the image.", "a cat"]
    (clip,) = read_table(table("clip,caption\na.mp4,a run\n"))
    assert turns(clip) == ["<video>\nDescribe the video.", "a run"]


ONE_ROLE = {
    "image,label,answer,question": "columns answer and label could each be the answer",
    "id,img,label,text": "columns text and label could each be the answer",
    "image,Image Path,question,answer": "columns image and Image Path could each be the image",
    "image,prompt,input,answer": "columns prompt and input could each be the question",
    "image,query,instruction,input,answer": "columns instruction and query and input could each be the question",
    "image,question,answer,system,system_prompt": "columns system and system_prompt could each be the system",
    "image,question,answer,A,C": "columns A, C are options with a gap; name them A, B and on",
    "image,question,answer,option_a,option_b,options": "columns option_a, option_b and options could each be the opt",
    "image,answer,A,B": "columns A, B are options without a column of questions; found: image, answer, A, B",
}


@pytest.mark.parametrize(("header", "told"), ONE_ROLE.items())
def test_columns_that_claim_one_thing_are_refused_with_their_names(table, header, told):
    with pytest.raises(ValueError, match="line 1: ") as caught:
        read_table(table(f"{header}\n"))
    assert told in str(caught.value)


def test_an_input_belongs_to_its_instruction(table):
    path = table("image,Instruction,INPUT,output,id,question_id\na.png,Say it.,a cat,x,7,8\na.png,Say it.,,x,9,8\n")
    both, alone = read_table(path)
    assert [turns(record)[0] for record in (both, alone)] == ["<image>\nSay it.\na cat", "<image>\nSay it."]
    assert (both["id"], alone["id"]) == ("7", "9")
    assert unread_words(path) == "columns question_id"


OPTIONS = {
    "A,B,C": "red,blue,",
    "option_a,Option B": "red,blue",
    "a,b": "red,blue",
    "opt_a,opt_b": "red,blue",
    "option0,option1": "red,blue",
    "options": '"[""red"", ""blue""]"',
    "choices": "\"['red', 'blue']\"",
}


@pytest.mark.parametrize(("header", "cells"), OPTIONS.items())
@pytest.mark.parametrize(("answer", "learned"), [("B", "B"), ("b", "B"), ("blue", "blue"), ("1", "B")])
def test_options_stand_behind_their_question(table, header, cells, answer, learned):
    (record,) = read_table(table(f"image,question,answer,{header}\na.png,Which?,{answer},{cells}\n"))
    assert turns(record) == ["<image>\nWhich?\nA. red\nB. blue", learned]
    assert record["choices"] == {"A": "red", "B": "blue"}


def test_numbers_of_options_that_are_counted_from_one_are_refused(table):
    path = table("image,question,answer,option1,option2\na,q,option2,x,y\na,q,B,x,y\na,q,1,x,y\na,q,2,2,y\n")
    named, letter, number, text = read_table(path)
    assert [turns(row) for row in (named, letter)] == [["<image>\nq\nA. x\nB. y", "B"]] * 2
    assert str(number).endswith("answer 1 may be counted from 0 or from 1; write the letter, or option1 and on")
    assert turns(text)[1] == "2"
    assert "choices" not in read_table(table("image,answer,x,y\na,q,3,4\n"))[0]


def test_a_further_picture_of_a_row_is_refused_and_a_column_of_splits_is_one(table):
    for column in ("image2", "image_b", "img_path_1", "Image 2"):
        with pytest.raises(ValueError, match=f"columns image and {column} each hold media of a row"):
            read_table(table(f"image,{column},answer\na,b,x\n"))
    path = table("image,answer,set\na,x,train\nb,y,test\n")
    with pytest.raises(ValueError, match="column set has rows 1 of train, 1 of test: name the ones to read"):
        read_table(path)
    assert [turns(row)[1] for row in read_table(path, "test")] == ["y"]
    assert len(read_table(table("image,answer,set\na,x,train\nb,y,tea\n"))) == 2


def test_a_weight_of_a_row_is_read_as_in_json_and_an_answer_of_no_value_is_none(table):
    path = table("image,answer,weight\n" + "".join(f"a,x,{w}\n" for w in ("0.5", "0.00", "n", "1", "", "1.0")))
    assert [isinstance(row, BadRecord) for row in read_table(path)] == [True, True, True, False, False, False]
    nothing, words = read_table(table("image,answer\na,NaN\na,none\n"))
    assert str(nothing) == "q.csv, line 2, column answer: holds NaN"
    assert turns(words)[1] == "none"
    assert unread_words(table(",image,answer\n")) == "columns (without a name)"


def test_options_that_stand_in_the_question_or_are_none_are_not_added(table):
    written, none, numbers, bad = read_table(
        table('image,question,answer,A,B\na.png,"Which?\n(A) x\n(B) y",A,x,y\na,q,1,,\na,q,3,2,3\na,q,2,x,y\n')
    )
    assert turns(written) == ["<image>\nWhich?\n(A) x\n(B) y", "A"]
    assert (turns(none), "choices" in none) == (["<image>\nq", "1"], False)
    assert turns(numbers) == ["<image>\nq\nA. 2\nB. 3", "3"]
    assert str(bad) == "q.csv, line 7: answer 2 is no number of an option, from 0 on; write the letter"
    (no_list,) = read_table(table("image,question,answer,options\na,q,b,red or blue\n"))
    assert str(no_list) == """q.csv, line 2: 'red or blue' is no list; write ["red", "blue"]"""


def test_columns_that_are_passed_over_are_told(table):
    path = table("image,answer,Hint,note,weight,b\n")
    assert open_source(path, "q").passed_over() == "q: passed over columns Hint, note, b"
    assert unread_words(table("image,answer\n")) == ""


BAD_ROWS = {
    "a.png,q,": r"q.csv, line 4, column Answer: is empty",
    "a.png,,a": r"q.csv, line 4, column question: is empty",
    " ;,q,a": r"q.csv, line 4, column image: is empty",
    "a.png,one, two,a": r"q.csv, line 4: 4 cells under 3 columns; quote",
}


@pytest.mark.parametrize(("row", "told"), BAD_ROWS.items())
def test_bad_row_is_told_by_file_line_and_column_and_leaves_the_others(table, row, told):
    first, bad, last = read_table(table(f'image,question,Answer\na.png,"q\n1",a\n{row}\nb.png,q,a\n'))
    assert isinstance(bad, BadRecord)
    assert str(bad).startswith(told)
    assert (first["id"], last["id"]) == ("line 2", "line 5")


BAD_TABLES = {
    "": "line 1: no column of answers (answer, response, ",
    '[{"x": "' + "y" * 200_000 + '"}]': """found: [{"x": "yyy""",
    "image,question\na,b\n": "target, assistant); found: image, question",
    "question,answer\na,b\n": "line 1: no column of images or videos (image, ",
    "Image,image,answer\na,b,c\n": "line 1: column image stands twice; found: Image, image, answer",
    'image,answer\na,"b\n': "line 2: unexpected end of data; check the quotes there",
}


@pytest.mark.parametrize(("text", "told"), BAD_TABLES.items())
def test_table_that_cannot_be_read_says_what_was_found(table, text, told):
    with pytest.raises(ValueError) as error:
        read_table(table(text))
    assert told in str(error.value)
    assert len(str(error.value)) < 1000


def test_table_of_another_encoding_is_refused_with_the_remedy(table):
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte 13\); save it again as CSV UTF-8"):
        read_table(table("image,answer\n\xe4.png,a\n", encoding="latin-1"))


SPLITS = "image,answer,Split\na.png,1,train\nb.png,2,Test\nc.png,3,train\nd.png,4,\n"


def test_rows_of_a_split_are_read_by_its_name(table):
    path = table(SPLITS)
    assert [record["image"] for record in read_plain(path, "Train")] == [["a.png"], ["c.png"]]
    assert [record["id"] for record in read_plain(path, "test")] == ["line 3"]
    assert split_of("a/q.csv@x") == (split_of("a/q.csv")[0], "x")
    assert split_of("a@b/q.json") == (split_of("a@b/q.json")[0], "")


def test_table_with_splits_is_not_read_as_a_whole(table):
    path = table(SPLITS)
    with pytest.raises(ValueError, match=r"column Split has rows 2 of train, 1 of test, 1 of none: .*as q\.csv@train"):
        read_plain(path)
    with pytest.raises(ValueError, match="column Split has no rows of val, only 2 of train"):
        read_plain(path, "val")
    with pytest.raises(ValueError, match="no column split, so no rows of val; found: image, answer"):
        read_plain(table("image,answer,x\n"), "val")


@pytest.fixture
def folder(tmp_path):
    def make(**files: str):
        for name, text in files.items():
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "pictures"

    return make


def test_captions_lie_beside_their_pictures(folder):
    path = folder(
        **{"b.PNG": "", "b.txt": " a box\n", "sub/a.1.jpg": "", "sub/a.1.txt": "x", "c.png": "", ".d.png": ""}
    )
    box, missing, other = read_folder(path)
    assert (box["id"], box["image"]) == ("b.PNG", "b.PNG")
    assert turns(box) == ["<image>\nDescribe the image.", "a box"]
    assert str(missing).startswith("c.png: no caption can be read beside it: ")
    assert turns(other)[1] == "x"
    assert count_records(path) == 3


def test_an_empty_caption_is_told(folder):
    (empty,) = read_folder(folder(**{"a.png": "", "a.txt": "\n"}))
    assert str(empty) == "a.txt: is empty"


def test_folders_name_what_their_pictures_show(folder):
    loose, cat, dog = read_folder(folder(**{"red_fox/1.jpg": "", "dog/x/2.jpg": "", "a.jpg": ""}))
    assert str(loose) == "a.jpg: lies in no folder that names what it shows"
    assert turns(cat) == ["<image>\nWhat is shown?", "dog"]
    assert (dog["image"], turns(dog)[1]) == ("red_fox/1.jpg", "red fox")


def test_folder_without_answers_is_refused_with_what_it_holds(folder):
    with pytest.raises(ValueError, match=r"holds no pictures \(\.jpg .*\); found: \.mp4"):
        read_folder(folder(**{"v.mp4": ""}))
    told = (
        r"1 pictures, no caption \(such as a\.txt\) and no folder by label; name its records instead: .*pictures/q\.csv"
    )
    with pytest.raises(ValueError, match=told):
        read_folder(folder(**{"a.png": "", "q.csv": ""}))


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n"


def test_links_are_followed_and_circles_end(folder, tmp_path):
    path = folder(**{"red/1.png": ""})
    other = tmp_path / "elsewhere"
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "2.png").write_bytes(png())
    (other / "up").symlink_to(path)
    (path / "blue").symlink_to(other)
    (path / "red" / "3.png").symlink_to(other / "deep" / "2.png")
    (path / "red" / "gone.png").symlink_to("nowhere")
    (path / "red" / "itself.png").symlink_to("itself.png")
    found = [record["id"] for record in read_folder(path)]
    assert found == ["blue/deep/2.png", "red/1.png", "red/3.png", "red/gone.png", "red/itself.png"]
    assert open_source(path, "s").files() == [path / name for name in found[:3]]


CONTENTS = {
    "jfif": b"\xff\xd8\xff\xe0",
    "JPG_large": b"\xff\xd8\xff\xe1",
    "": png(),
    "bin": b"RIFF\0\0\0\0WEBPVP8 ",
    "dat": b"BM\x36\0\0\0\0\0\0\0\x36",
    "x": b"\0\0\0\x1cftypavif",
    "heic": b"",
    "svg": b"<svg>",
}
OTHERS = {
    "md": b"BMW and other cars",
    "db": b"\xd0\xcf\x11",
    "wav": b"RIFF\0\0\0\0WAVE",
    "mp4": b"\0\0\0\x1cftypisom",
    "txt": png(),
}


def test_pictures_are_judged_by_content_where_their_name_does_not_tell(folder):
    path = folder(**{"cat/0.png": "", "cat/.1.png": "", ".git/2.png": ""})
    for number, (suffix, content) in enumerate({**CONTENTS, **OTHERS}.items()):
        (path / "cat" / f"{number}.{suffix}".rstrip(".")).write_bytes(content)
    found = [Path(record["id"]).name for record in read_folder(path)]
    assert found == sorted(["0.png", *(f"{i}.{s}".rstrip(".") for i, s in enumerate(CONTENTS))])
    told = "s: passed over 5 files that are neither pictures nor captions of one, such as "
    assert open_source(path, "s").passed_over() == told + "cat/10.wav, cat/11.mp4, cat/12.txt, cat/8.md, cat/9.db"


def test_captions_without_a_picture_are_told(folder):
    path = folder(**{"a.jpg": "", "a.txt": "x", "b.txt": "y", "c.TXT": "z", "c.png": ""})
    records = read_folder(path)
    assert len(records) == 2
    assert unread_words(path) == "1 files that are neither pictures nor captions of one, such as b.txt"
    assert unread_words(folder(**{"b.png": ""})) == ""


NO_LABELS = {
    "splits": (
        ["train/cat/1.png", "test/dog/2.png"],
        "test, train, which says nothing .* labels instead: {}/test or {}/train",
    ),
    "split of its own": (["train/cat/1.png", "train/dog/2.png"], "in train, .* instead: {}/train$"),
    "within a place": (
        ["images/train2017/cat/1.png", "images/val2017/cat/2.png"],
        "{}/images/train2017 or {}/images/val",
    ),
    "in one folder after another": (["a/b/c/cat/1.png", "a/b/c/dog/2.png"], "in a, .* instead: {}/a/b/c$"),
    "folds and sides": (["fold1/cat/1.png", "trainA/2.png", "set_b/2.png"], "in fold1, set_b, trainA, .*{}/fold1$"),
    "place": (["JPEGImages/1.png"], "in JPEGImages, .*; put them into folders that are named by what they show"),
    "place and labels": (["cat/1.png", "images/2.png"], "in images, which says nothing"),
    "split and labels": (["cat/1.png", "test/2.png"], "in test, which says nothing"),
    "train with labels": (["cat/1.png", "train/cat/2.png"], "in train, .* instead: {}/train$"),
    "project": (["images/1.png", "annotations/train.json"], "in images, .*records instead: {}/annotations/train.json"),
    "other name": (["PetImages/cat/1.png", "PetImages/dog/2.png"], "in PetImages, .* instead: {}/PetImages$"),
    "records": (["coco/1.png", "qa.jsonl"], "holds records beside its pictures; .* {}/qa.jsonl, with data.root={}$"),
    "table": (["images/1.png", "metadata.csv"], "in images, .*records instead: {}/metadata.csv, with data.root={}$"),
    "shards": (["train/0.parquet", "test/0.parquet"], "records instead: {}/test/0.parquet or {}/train/0.parquet"),
    "no pictures": (["qa.jsonl", "notes.pdf"], "holds no pictures .*records instead: {}/qa.jsonl"),
}
RECORDS = {"qa.jsonl": '{"id": 1, "conversations": []}', "metadata.csv": "file_name,text\na.png,x\n"}


@pytest.mark.parametrize(("names", "told"), NO_LABELS.values(), ids=NO_LABELS)
def test_folders_that_are_no_labels_are_refused_with_the_path_that_was_meant(folder, names, told):
    path = folder(**{name: RECORDS.get(name, "") for name in names})
    with pytest.raises(ValueError, match=f"(?s){told.replace('{}', str(path))}"):
        read_folder(path)


def test_labels_that_look_like_splits_stay(folder):
    path = folder(
        **{"train/1.png": "", "bus/2.png": "", "classes.json": "[]", "list.csv": "image,answer\n", "7/3.png": ""}
    )
    assert [turns(record)[1] for record in read_folder(path)] == ["7", "bus", "train"]
    assert turns(read_folder(folder(**{"x/dog/deep/1.png": ""}))[-1])[1] == "x"


def test_a_folder_is_no_split(folder):
    path = folder(**{"train/cat/1.png": "", "test/cat/1.png": ""})
    with pytest.raises(
        ValueError, match=rf"has no splits, so none called train; name the folder instead: {path}/train"
    ):
        format_of(path, "train")


def test_table_of_the_documentation_is_read(table):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    first, second, pair = read_table(table(page.split("```\n")[1]))
    assert turns(first)[1] == "No, it is whole."
    assert turns(second)[1] == "celadon"
    assert pair["image"] == ["kiln/0413.jpg", "kiln/0414.jpg"]
