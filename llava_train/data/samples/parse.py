"""Records, as `llava_train.records.readers.open` gives them, become `Sample`s.

A record: `id` (optional), `conversations` [{from, value}] or [{role, content}], or `messages` with typed parts (see
`messages.py`), `image` and `video` (or `images`, `videos`) each a path or a list of paths, all optional. A first
`system` turn, or `system` beside the turns, replaces the default; a leading answer to nothing is dropped. For what a
turn says about its own training see `fields.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_train.config.mixture import SourceConfig
from llava_train.config.schema import DataConfig
from llava_train.data.samples.sample import Role, Sample, Turn
from llava_train.records.chat_messages import from_messages, with_one_name
from llava_train.records.fields import is_learned, refuse_fields, system_text
from llava_train.records.lost_media import refuse_lost
from llava_train.records.media_file import MediaFile, PackedFile
from llava_train.records.media_paths import inside
from llava_train.records.record import BadRecord
from llava_train.shared.errors import DataError, cut_short
from llava_train.text.base import ANSWER_ROLES

ID_SHOWN = 200  # characters of an id that messages repeat
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
}


@dataclass(frozen=True)
class MediaRoots:
    """Where the media of records lie: paths are relative to `root`, and leave neither it nor `base`."""

    root: Path
    base: Path | None = None  # the data root, above `root`
    outside: bool = False  # paths may lead anywhere
    sizes: bool = False  # `width` and `height` of records are taken for those of their images
    packed: Path | None = None  # file that media without a path of their own lie in: see `index.py`

    def file(self, entry: str | PackedFile) -> MediaFile:
        """Raises BadRecord where a path leads outside."""
        if isinstance(entry, PackedFile):
            return entry._replace(path=self.packed) if self.packed and entry.path == Path() else entry
        tops = {self.root: None, self.base or self.root: None}
        return inside(self.root, entry, None if self.outside else tuple(tops))


def media_roots(data: DataConfig, source: SourceConfig) -> MediaRoots:
    """Of a source of a run."""
    by_records = data.sizes == "records"
    return MediaRoots(
        Path(source.media_root).absolute(), Path(data.root).absolute(), data.allow_outside_root, by_records
    )


def to_sample(record: Any, source: str, position: int, roots: MediaRoots) -> Sample:
    """One record as a Sample. Raises DataError with reason `bad record`."""
    name = record_name(record, position)
    try:
        if isinstance(record, BadRecord):
            raise record
        if not isinstance(record, dict):
            raise BadRecord(f"is a {type(record).__name__}, not a mapping")
        record = from_messages(with_one_name(record))
        refuse_fields(record)
        turns, opens = _turns(record.get("conversations"), system_text(record))
        refuse_lost(record, turns)
        return Sample(
            id=record_id(record, position),
            source=source,
            turns=turns,
            images=(images := _files(record, "image", roots)),
            videos=_files(record, "video", roots),
            record=name,
            sizes=_sizes(record, len(images)) if roots.sizes else (),
            lost_opening=opens,
        )
    except BadRecord as error:
        raise DataError(source, name, "bad record", str(error)) from error


def to_answered(record: Any, source: str, position: int, roots: MediaRoots) -> Sample:
    """As `to_sample`, of which every answer says something: from an empty one a model learns to say nothing."""
    sample = to_sample(record, source, position, roots)
    for number, turn in enumerate(sample.turns, 1):
        if turn.role == "gpt" and not turn.text.strip():
            raise sample.error("bad record", f"the answer in turn {number} is empty")
    return sample


def record_id(record: Any, position: int) -> str:
    """The record's own id, else its position."""
    identity = record.get("id") if isinstance(record, dict) else None
    return _writable(str(position if identity is None else identity))


def _writable(text: str) -> str:
    """The text with each lone surrogate, which JSON can hold and no file, as its escape."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def record_name(record: Any, position: int) -> str:
    """What errors call it: its position, and the id where it has one."""
    identity = record_id(record, position)
    return str(position) if identity == str(position) else f"{position} (id {cut_short(identity, ID_SHOWN)})"


def _turns(conversation: Any, system: str) -> tuple[list[Turn], bool]:
    """The turns, and whether an answer before them is left out. system: the text beside the turns, or none."""
    if not isinstance(conversation, list) or not conversation:
        raise BadRecord("no conversations")
    turns = [_turn(entry) for entry in conversation]
    if system and turns[0].role != "system":
        turns.insert(0, Turn("system", _text(system, "system")))
    elif system and turns[0].text != system:
        raise BadRecord("the system turn and the system text beside the turns differ: leave one of them out")
    start = 1 if turns[0].role == "system" else 0
    if opens := len(turns) > start and turns[start].role in ANSWER_ROLES:
        del turns[start]
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRecord("a system turn may only come first")
    if len(turns) == start:
        raise BadRecord("no human turn")
    return turns, opens


def _turn(entry: Any) -> Turn:
    if not isinstance(entry, dict):
        raise BadRecord("a turn is not a mapping")
    role = entry.get("from", entry.get("role"))
    text = entry.get("value", entry.get("content"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRecord(f"role {role!r} is unknown; known: {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise BadRecord(f"the text of a {role} turn is a {type(text).__name__}")
    is_answer = ROLES[role] in ANSWER_ROLES
    read_only = not is_learned(entry, is_answer) and is_answer
    return Turn("given" if read_only else ROLES[role], _text(text, role))


def _text(text: str, role: str) -> str:
    if _writable(text) != text:
        raise BadRecord(f"the text of a {role} turn holds half of a character: {ascii(text)[:60]}")
    return text


def _files(record: dict, key: str, roots: MediaRoots) -> list[MediaFile]:
    value = record.get(key)
    if value is None or value == "":
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str | PackedFile) for entry in values):
        raise BadRecord(f"{key!r} is neither a path nor a list of paths")
    return [roots.file(entry) for entry in values]


def _sizes(record: dict, num_images: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of each image as the record gives them; nothing where it gives none. Raises BadRecord."""
    sides = [record.get(key) for key in ("height", "width")]
    if sides == [None, None] or not num_images:
        return ()
    heights, widths = (side if isinstance(side, list) else [side] for side in sides)
    if not len(heights) == len(widths) == num_images or not all(type(n) is int and n > 0 for n in heights + widths):
        raise BadRecord(f"width and height are no sizes of {num_images} images")
    return tuple(zip(heights, widths, strict=True))
