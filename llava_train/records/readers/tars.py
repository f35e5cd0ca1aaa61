"""WebDataset: a tar file, or a folder of them. Images and videos are read in place, by the offsets of their members.

Members that follow each other with one key (their name up to the first dot behind its folders) are a record: `.json`
holds it, or `.txt` a caption, beside which `.json` may hold metadata; the others are its media, by their suffix, images
also by their content.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from llava_train.records.chat_messages import from_messages, with_one_name
from llava_train.records.file_formats import UNPACK
from llava_train.records.image_files import HEAD, is_image
from llava_train.records.media_paths import in_short
from llava_train.records.readers.reader import Raw, Reader, made
from llava_train.records.record import DESCRIBE, BadRecord
from llava_train.records.tags import MEDIUM_KINDS

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
ASKED = ("conversations", "messages", "prompt")  # keys of a JSON that is a record, and no metadata of a medium
CAPTIONS = ("caption", "text")
OF_MEDIA = ("id", "image", "video", "width", "height")  # what is taken of metadata
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin
Members = dict[str, tarfile.TarInfo]  # of a record by suffix, without the first dot, in lower case


class Tars(Reader):
    def count(self) -> int:
        return sum(1 for path in self.files() for _ in groupby(_members(path), _key))

    def __iter__(self) -> Iterator[Raw]:
        for path in self.files():
            with path.open("rb") as file:
                for key, group in groupby(_members(path), _key):
                    try:
                        yield _record(key, _by_suffix(group), file)
                    except BadRecord as error:
                        yield Raw(b"", bad=f"{path.name}, {key}: {error}")


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """All but folders and hidden files. Raises ValueError where the tar is damaged or compressed."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not member.isdir() and not _base(member).startswith("."):
                    yield member
            assert tar.fileobj
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"{path.name}, byte {tar.offset}: neither a member nor the end of a tar; cut short?")
    except tarfile.TarError as error:
        with path.open("rb") as file:
            if file.read(max(map(len, PACKED))).startswith(PACKED):
                raise ValueError(f"{path.name} {UNPACK}") from error
        raise ValueError(f"{path.name}: {error}") from error


def _base(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2]


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, base = member.name.removeprefix("./").rpartition("/")
    return folder + slash + base.partition(".")[0]


def _by_suffix(group: Iterator[tarfile.TarInfo]) -> Members:
    members: Members = {}
    for member in list(group):
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise BadRecord(f"member {member.name} leads out of the tar")
        if not member.isreg() or member.issparse():
            raise BadRecord(f"member {member.name} is a link or device, no file")
        suffix = _base(member).partition(".")[2].lower()
        if suffix in members:
            raise BadRecord(f"has two members .{suffix}")
        members[suffix] = member
    return members


def _record(key: str, members: Members, file: BinaryIO) -> Raw:
    """Raises BadRecord."""
    present = _present(members, file)
    content = _json(members["json"], file) if "json" in members else {}
    is_asked = any(content.get(name) is not None for name in ASKED)
    if is_asked:
        beside = {kind: [member.name for member in found] for kind, found in present.items()}
        record = {"id": key} | from_messages(with_one_name(content), beside)
    else:
        record = {"id": key} | {name: content[name] for name in OF_MEDIA if name in content}
    media = {kind: _named(kind, record.get(kind), members, present[kind]) for kind in MEDIUM_KINDS}
    if not is_asked:
        caption = _caption(content, members, file)
        record["conversations"] = _captioned({kind: len(found) for kind, found in media.items()}, *caption)
    path = os.path.abspath(file.name)
    for kind, found in media.items():
        record[kind] = [{"path": path, "offset": m.offset_data, "size": m.size, "name": m.name} for m in found]
    return made(record)


def _json(member: tarfile.TarInfo, file: BinaryIO) -> dict[str, Any]:
    try:
        content = json.loads(_read(member, file))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadRecord(f"is a {type(content).__name__}, not a mapping")
    return content


def _caption(content: dict[str, Any], members: Members, file: BinaryIO) -> tuple[str, str]:
    """(text, where it stands): the member .txt, else a text of the JSON."""
    if caption := members.get("txt"):
        try:
            return _read(caption, file), caption.name
        except UnicodeDecodeError as error:
            raise BadRecord(f"{caption.name} is not UTF-8") from error
    if name := next((name for name in CAPTIONS if isinstance(content.get(name), str)), None):
        return content[name], f"{name} of {members['json'].name}"
    found = ", ".join(members)
    if "json" in members:
        raise BadRecord(f"its .json holds neither conversations nor a caption, and there is no .txt; found: {found}")
    raise BadRecord(f"has no member .json or .txt; found: {found}")


def _read(member: tarfile.TarInfo, file: BinaryIO) -> str:
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8-sig")


def _named(kind: str, entries: Any, members: Members, present: list[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """The members that a record means: by name, base name or suffix; all of that kind where it names none."""
    entries = [] if entries in (None, "") else entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, str) for entry in entries):
        raise BadRecord(f"{kind!r} is neither a path nor a list of paths")
    by_name = {name: m for suffix, m in members.items() for name in (m.name, _base(m), suffix, f".{suffix}")}
    found = [by_name.get(entry) or by_name.get(entry.rpartition("/")[2]) for entry in entries]
    if entries and all(found):
        return [member for member in found if member]
    if entries and (any(found) or len(entries) != len(present)):
        missing = next(entry for entry, member in zip(entries, found, strict=True) if not member)
        raise BadRecord(f"{kind} {in_short(missing)} is no member; found: {', '.join(map(_base, members.values()))}")
    return present


def _present(members: Members, file: BinaryIO) -> dict[str, list[tarfile.TarInfo]]:
    """The members that are images, by name or else by content, or videos, by name."""
    present: dict[str, list[tarfile.TarInfo]] = {kind: [] for kind in MEDIUM_KINDS}
    for member in members.values():
        suffix = Path(member.name).suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            present["video"].append(member)
        elif suffix not in (".json", ".txt") and is_image(os.pread(file.fileno(), HEAD, member.offset_data), suffix):
            present["image"].append(member)
    return present


def _captioned(counts: dict[str, int], text: str, name: str) -> list[dict[str, str]]:
    text = text.strip()
    if not text or not any(counts.values()):
        raise BadRecord(f"{name} is empty" if not text else f"has no image or video beside {name}")
    tags = "".join(f"<{kind}>\n" * count for kind, count in counts.items())
    question = tags + DESCRIBE.format("image" if counts["image"] else "video")
    return [{"from": "human", "value": question}, {"from": "gpt", "value": text}]
