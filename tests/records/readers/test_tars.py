"""WebDataset tars: how members become records, and what is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc

import pytest
from in_every_format import add

from llava_train.records.readers.open import open_source, record_of
from llava_train.records.record import BadRecord
from llava_train.shared.errors import DataError

ASKED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
Member = tuple[str, bytes]


@pytest.fixture
def tar(tmp_path):
    def write(*members: Member, name: str = "a.tar", **header):
        """`header`: of the last member."""
        with tarfile.open(tmp_path / name, "w") as made:
            for i, (member, content) in enumerate(members):
                add(made, member, content, **(header if i == len(members) - 1 else {}))
        return tmp_path / name

    return write


def entry(**record) -> bytes:
    return json.dumps({"conversations": ASKED} | record).encode()


def read(path) -> list:
    return [record_of(raw) for raw in open_source(path, "s")]


def media(record) -> list[bytes]:
    return [medium.read() for kind in ("image", "video") for medium in record[kind]]


NAMED = {
    "nothing": ({}, [b"first", b"second"]),
    "null": ({"image": None}, [b"first", b"second"]),
    "names": ({"image": ["d/1.b.png", "d/1.a.JPG"]}, [b"second", b"first"]),
    "the plural": ({"images": ["1.b.png", None]}, [b"second"]),
    "an empty one": ({"image": ""}, [b"first", b"second"]),
    "base name": ({"image": "1.b.png"}, [b"second"]),
    "suffix": ({"image": ["a.jpg"]}, [b"first"]),
    "suffix with its dot": ({"image": [".b.png", ".b.png"]}, [b"second", b"second"]),
    "name in other folders": ({"image": ["coco/train/1.b.png"]}, [b"second"]),
    "names of where they lay before": ({"image": ["x/7.png", "y/8.png"]}, [b"first", b"second"]),
    "another suffix": ({"video": "raw"}, [b"first", b"second", b"other"]),
}


@pytest.mark.parametrize(("record", "found"), NAMED.values(), ids=NAMED)
def test_media_are_those_that_the_record_names_or_all_of_its_group(tar, record, found):
    group = [("./d/1.a.JPG", b"first"), ("d/1.json", entry(**record)), ("d/1.raw", b"other"), ("d/1.b.png", b"second")]
    (made,) = read(tar(*group))
    assert media(made) == found
    assert made["id"] == "d/1"
    assert made["conversations"] == ASKED


def test_groups_are_members_in_a_row_with_one_key(tar):
    group = [
        ("a/x.json", entry(id="1")),
        ("b/x.png", b"p"),
        ("b/x.json", entry()),
        ("b/._x.png", b""),
        ("c.json", entry()),
    ]
    path = tar(*group)
    assert [(record["id"], media(record)) for record in read(path)] == [("1", []), ("b/x", [b"p"]), ("c", [])]
    assert open_source(path, "s").count() == 3


def test_shards_of_a_folder_follow_each_other(tar, tmp_path):
    for shard in (1, 0, 10):
        tar((f"{shard}.json", entry()), name=f"s-{shard:03}.tar")
    (tmp_path / "index.txt").write_text("")
    assert [record["id"] for record in read(tmp_path)] == ["0", "1", "10"]


def test_captions_answer_for_their_media(tar):
    image, clip = read(tar(("1.png", b"p"), ("1.txt", "\ufeffein Haus é\n".encode()), ("2.mp4", b"v"), ("2.txt", b"b")))
    assert [turn["value"] for turn in image["conversations"]] == ["<image>\nDescribe the image.", "ein Haus é"]
    assert [turn["value"] for turn in clip["conversations"]] == ["<video>\nDescribe the video.", "b"]
    assert (media(image), media(clip)) == ([b"p"], [b"v"])


def test_images_are_members_by_their_content_as_well(tar):
    jpeg, avif = b"\xff\xd8\xff\xe0 a", b"\0\0\0\x1cftypavif"
    other = [("1.npy", b"\x93NUMPY"), ("1.cls", b"7")]
    (made,) = read(tar(("1.0.jfif", jpeg), ("1.1.avif", avif), *other, ("1.2.JPG_large", jpeg), ("1.json", entry())))
    assert media(made) == [jpeg, avif, jpeg]
    (captioned,) = read(tar(("1.JFIF", jpeg), ("1.txt", b"a cat")))
    assert media(captioned) == [jpeg]


CAPTION = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": "a red disc"}]
METADATA = {"url": "https://e.org/a.jpg", "key": "0", "status": "success", "width": 8, "height": 6, "type": "photo"}
CAPTIONED = {
    "img2dataset": (METADATA | {"caption": "other"}, [("0.txt", b"a red disc")]),
    "caption in the JSON": (METADATA | {"caption": " a red disc"}, []),
    "text in the JSON": ({"text": "a red disc", "caption": None, "width": 8, "height": 6}, []),
    "no conversations": ({"conversations": None, "width": 8, "height": 6}, [("0.txt", b"a red disc")]),
}


@pytest.mark.parametrize(("metadata", "more"), CAPTIONED.values(), ids=CAPTIONED)
def test_metadata_beside_a_caption_make_a_record(tar, metadata, more):
    (made,) = read(tar(("0.jpg", b"p"), *more, ("0.json", json.dumps(metadata).encode())))
    assert (made.pop("conversations"), media(made)) == (CAPTION, [b"p"])
    assert made | {"image": [], "video": []} == {"id": "0", "width": 8, "height": 6, "image": [], "video": []}


def test_a_folder_of_img2dataset_is_its_tars(tar, tmp_path):
    for shard in ("00000", "00001"):
        tar((f"{shard}0.jpg", b"p"), (f"{shard}0.txt", b"a red disc"), name=f"{shard}.tar")
        (tmp_path / f"{shard}.parquet").write_bytes(b"metadata")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    assert [record["id"] for record in read(tmp_path)] == ["000000", "000010"]
    (tmp_path / "other.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds other\.parquet and 00000\.tar: keep one format"):
        read(tmp_path)


def test_a_prompt_needs_no_caption(tar):
    (made,) = read(tar(("0.jpg", b"p"), ("0.json", b'{"prompt": "What?"}')))
    assert (made["prompt"], media(made)) == ("What?", [b"p"])


def test_typed_parts_name_members(tar):
    parts = [{"type": "image", "image": "x/1.b.png"}, {"type": "text", "text": "q"}]
    record = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    (made,) = read(tar(("1.a.png", b"a"), ("1.b.png", b"b"), ("1.json", record)))
    assert media(made) == [b"b"]
    assert made["conversations"][0]["content"] == "<image>\nq"


PLACE = {"path": "/etc/passwd", "offset": 0, "size": 9, "name": "x"}
REFUSED = {
    "path": ([("1.json", entry(image="/etc/passwd"))], "image '/etc/passwd' is no member; found: 1.json"),
    "one of two": (
        [("1.png", b""), ("1.json", entry(image=["1.png", "2.png"]))],
        "image '2.png' is no member; found: 1.png, 1.json",
    ),
    "one of as many": (
        [("1.png", b""), ("1.jpg", b""), ("1.json", entry(image=["1.png", "2.png"]))],
        "image '2.png' is no member; found: 1.png, 1.jpg, 1.json",
    ),
    "object": ([("1.json", entry(image=[PLACE]))], "'image' is neither a path nor a list of paths"),
    "twice": ([("1.png", b""), ("1.PNG", b""), ("1.json", entry())], "has two members .png"),
    "nothing said": ([("1.png", b"")], "has no member .json or .txt; found: png"),
    "no JSON": ([("1.json", b"{")], "no JSON: "),
    "no UTF-8": ([("1.json", b'"\xff"')], "no JSON: "),
    "metadata alone": (
        [("1.png", b""), ("1.json", json.dumps(METADATA).encode())],
        "its .json holds neither conversations nor a caption, and there is no .txt; found: png, json",
    ),
    "empty caption in the JSON": ([("1.png", b""), ("1.json", b'{"caption": ""}')], "caption of 1.json is empty"),
    "a list": ([("1.json", b"[]")], "is a list, not a mapping"),
    "empty caption": ([("1.png", b""), ("1.txt", b" ")], "1.txt is empty"),
    "caption of nothing": ([("1.txt", b"x")], "has no image or video beside 1.txt"),
    "caption in Latin": ([("1.png", b""), ("1.txt", b"\xe9")], "1.txt is not UTF-8"),
    "absolute": ([("/1.json", entry())], "member /1.json leads out of the tar"),
    "above": ([("a/../1.json", entry())], "member a/../1.json leads out of the tar"),
}


@pytest.mark.parametrize(("members", "told"), REFUSED.values(), ids=REFUSED)
def test_bad_group_is_one_bad_record_in_its_place(tar, members, told):
    first, bad, last = read(tar(("0.json", entry()), *members, ("2.json", entry())))
    assert isinstance(bad, BadRecord)
    assert str(bad).startswith("a.tar, ")
    assert told in str(bad)
    assert (first["id"], last["id"]) == ("0", "2")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_by_name(tar, kind):
    path = tar(("1.json", entry()), ("1.png", b""), type=kind, linkname="/etc/passwd")
    (bad,) = read(path)
    assert str(bad) == "a.tar, 1: member 1.png is a link or device, no file"


def refused(path) -> str:
    with pytest.raises(DataError, match="s, record -: unreadable file") as error:
        read(path)
    return error.value.detail


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.tgz"])
def test_compressed_tars_are_refused_with_the_remedy(tar, tmp_path, name):
    path = tar(("1.json", entry()))
    (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    assert "is compressed: unpack it once (gunzip" in refused(tmp_path / name)
    assert f"{name} is compressed" in refused(tmp_path)


@pytest.mark.parametrize("left", [0, 100, 512 * 3 - 1, 512 * 4, 512 * 4 + 600, 512 * 6])
def test_tar_that_is_cut_short_is_refused(tar, left):
    path = tar(*[(f"{i}.json", entry()) for i in range(3)])
    content = path.read_bytes()
    assert content[512 * 6 :].strip(b"\0") == b""
    path.write_bytes(content[:left])
    assert "a.tar" in refused(path)


def test_damage_in_the_middle_is_not_taken_for_the_end(tar):
    path = tar(*[(f"{i}.json", entry()) for i in range(3)])
    content = bytearray(path.read_bytes())
    content[1024:1030] = b"\xff" * 6
    path.write_bytes(content)
    assert "a.tar, byte 1024: neither a member nor the end of a tar" in refused(path)


def test_two_formats_in_a_folder_are_told(tar, tmp_path):
    tar(("1.json", entry()))
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "holds a.parquet and a.tar: keep one format" in refused(tmp_path)


def test_memory_does_not_grow_with_the_number_of_members(tmp_path):
    number, content = 4000, entry()
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as made:
        for i in range(number):
            member = tarfile.TarInfo(f"{i}.json")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
            made.members.clear()
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(tmp_path / "a.tar", "s")) == number
        assert tracemalloc.get_traced_memory()[1] < number * 200
    finally:
        tracemalloc.stop()
