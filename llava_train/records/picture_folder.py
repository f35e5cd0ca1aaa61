"""A folder of pictures as records: captions beside them, or folders that are named by what they show."""

from __future__ import annotations

from pathlib import Path

from llava_train.records.file_formats import JSON_SUFFIXES, RECORD_SUFFIXES
from llava_train.records.folder_labels import meant_folders, wrong_labels
from llava_train.records.image_files import IMAGE_SUFFIXES, sorted_out
from llava_train.records.record import DESCRIBE, NAME_IT, NAMED, BadRecord, Record

HEAD = 2**16  # bytes of a file that may hold records


def read_folder(path: Path) -> list[Record | BadRecord]:
    """Pictures with captions, PICTURE.txt beside each; else pictures in folders that are named by what they show.

    Paths are below `path`, in the order of their names. Raises ValueError where it is neither, or where the names of
    folders are those of splits and places, OSError.
    """
    pictures, texts, others = sorted_out(path)
    if not pictures:
        kinds = ", ".join(sorted({file.suffix or file.name for file in others})) or "nothing"
        raise ValueError(f"holds no pictures ({' '.join(IMAGE_SUFFIXES)}); found: {kinds}{_instead(path, others)}")
    if texts:
        return [_captioned(path, picture) for picture in pictures]
    if all(len(picture.parts) == 1 for picture in pictures):
        told = (
            f"{len(pictures)} pictures, no caption (such as {pictures[0].with_suffix('.txt')}) and no folder by label"
        )
        raise ValueError(told + _instead(path, others))
    _refuse_places(path, pictures, others)
    return [_labelled(picture) for picture in pictures]


def _refuse_places(path: Path, pictures: list[Path], others: list[Path]) -> None:
    """Raises ValueError where folders would be answers that say nothing of a picture, with the path that was meant."""
    records = [file for file in others if len(file.parts) == 1 and _holds_records(path / file)]
    names = wrong_labels(pictures)
    if records:
        raise ValueError(f"holds records beside its pictures{_instead(path, records)}")
    if not names:
        return
    told = f"has pictures in {', '.join(names[:NAMED])}, which says nothing of what they show"
    if meant := [str(path / folder) for folder in meant_folders(pictures)]:
        raise ValueError(f"{told}; name the folder of the labels instead: {' or '.join(meant[:NAMED])}")
    remedy = "; put them into folders that are named by what they show, or write a table"
    raise ValueError(told + (_instead(path, others) or remedy))


def _instead(folder: Path, files: list[Path]) -> str:
    """Advice to name a file of records that lies in the folder; empty where none does."""
    named = [str(folder / file) for file in files if file.suffix.lower() in RECORD_SUFFIXES]
    if not named:
        return ""
    more = f" (and {len(named) - NAMED} more)" if len(named) > NAMED else ""
    return f"; name its records instead: {' or '.join(named[:NAMED])}{more}, with data.root={folder}"


def _holds_records(file: Path) -> bool:
    """Whether it holds conversations, by its first bytes."""
    if file.suffix.lower() not in JSON_SUFFIXES or not file.is_file():
        return False
    with file.open("rb") as content:
        head = content.read(HEAD)
    return b'"conversations"' in head or b'"messages"' in head


def _captioned(root: Path, picture: Path) -> Record | BadRecord:
    try:
        caption = (root / picture.with_suffix(".txt")).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        return BadRecord(f"{picture}: no caption can be read beside it: {error}")
    if not caption:
        return BadRecord(f"{picture.with_suffix('.txt')}: is empty")
    return _asked(picture, DESCRIBE.format("image"), caption)


def _labelled(picture: Path) -> Record | BadRecord:
    if len(picture.parts) == 1:
        return BadRecord(f"{picture}: lies in no folder that names what it shows")
    return _asked(picture, NAME_IT, picture.parts[0].replace("_", " "))


def _asked(picture: Path, question: str, answer: str) -> Record:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": str(picture), "image": str(picture), "conversations": turns}
