"""A table of questions and answers as records, for people who write no JSON.

Enters: a CSV or TSV file, `FILE@SPLIT` for the rows of one split, or a folder of pictures (`picture_folder`). Leaves:
records as LLaVA's JSON has them, each bad one as a `BadRecord` in its place.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llava_train.records.choices import answer_of, option_columns, read_choices, with_options
from llava_train.records.fields import is_left_out
from llava_train.records.folder_labels import SPLITS
from llava_train.records.image_files import sorted_out
from llava_train.records.picture_folder import read_folder
from llava_train.records.record import DESCRIBE, BadRecord, Record, columns_passed_over, files_passed_over
from llava_train.shared.errors import cut_short

DELIMITERS = ",;\t"
COLUMNS = {  # names of a column, however they are cased; of several ids the first one counts, else a table has one
    "image": (
        "image",
        "images",
        "image_path",
        "image_file",
        "img",
        "file",
        "file_name",
        "filename",
        "picture",
        "photo",
    ),
    "video": ("video", "videos", "video_path", "video_file", "clip"),
    "question": ("question", "prompt", "instruction", "query", "input", "user"),
    "answer": ("answer", "response", "output", "caption", "text", "label", "target", "assistant"),
    "system": ("system", "system_prompt"),
    "options": ("options", "choices", "candidates"),
    "split": ("split", "subset"),
    "id": ("id", "question_id", "sample_id"),
    **{name: (name,) for name in ("weight", "loss", "train", "training")},
}
SHOWN = 500  # characters of a header that a message repeats
NO_VALUE = ("nan", "<na>", "#n/a")  # what tools write for an empty cell; `none` and `n/a` may be answers
_SECOND = re.compile("(image|img|picture|photo|frame|video|clip|file)s?(_?(path|file|name))?_?([0-9]+|[b-f])")
_TAG = re.compile("<image>|<video>")


def read_plain(path: Path, split: str = "") -> list[Record | BadRecord]:
    """The records of a folder or a table. Raises OSError or ValueError."""
    return read_folder(path) if path.is_dir() else read_table(path, split)


def unread_words(path: Path) -> str:
    """What is not read of a folder or a table, in words; empty where all is. Raises OSError or ValueError."""
    if path.is_dir():
        return files_passed_over("that are neither pictures nor captions of one", sorted_out(path).others)
    header, columns, _ = _table(path)
    return columns_passed_over([name for at, name in enumerate(header) if at not in columns.values()])


def read_table(path: Path, split: str = "") -> list[Record | BadRecord]:
    """The rows of a table, those of a split where the table has several. Raises ValueError where it is none to read.

    An image or video cell may hold several paths, with ; or | between them. Questions without tags get them in front,
    and behind them their options, where columns A, B and so on, or one of options, hold these.
    """
    header, columns, numbered = _table(path)
    if split or "split" in columns:
        numbered = _of_split(path, numbered, columns, header, split)
    return [_record(path, line, cells, header, columns) for line, cells in numbered]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line that it starts on, cells) of each row that is not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start}); save it again as CSV UTF-8") from error
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # of the process: a cell may be a whole image
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}; check the quotes there") from error


def _delimiter(path: Path, text: str) -> str:
    """The one by which most columns of the header are known."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    known = {name for names in COLUMNS.values() for name in names}
    header = re.split("[\r\n]", text.lstrip(), maxsplit=1)[0].strip()

    def fit(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        return sum(_plain(cell) in known for cell in cells), len(cells)

    return max(DELIMITERS, key=fit)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _table(path: Path) -> tuple[list[str], dict[str, int], list[tuple[int, list[str]]]]:
    """Header, position of each column that is known, and rows as `_rows` gives them. A column of nothing but names of
    splits is one of splits, whatever it is called."""
    rows = _rows(path)
    header = [cell.strip() for cell in next(rows, (0, []))[1]]
    columns, numbered = _columns(header), list(rows)
    unread = [at for at in range(len(header)) if at not in columns.values()]
    for at in unread if "split" not in columns else ():
        names = {cells[at].strip().lower() for _, cells in numbered if at < len(cells)}
        if len(names) > 1 and names <= SPLITS:
            columns["split"] = at
            break
    return header, columns, numbered


def _columns(header: list[str]) -> dict[str, int]:
    """Position of each column that is known, of options by their letter; `input` is Alpaca's, beside its question.

    Raises ValueError where one is missing or stands twice, or several are for one thing.
    """
    names = [_plain(cell) for cell in header]
    found = f"found: {cut_short(', '.join(header), SHOWN) or 'no header'}"
    if twice := [header[i] for i, name in enumerate(names) if name and name in names[:i]]:
        raise ValueError(f"line 1: column {twice[0]} stands twice; {found}")
    columns = {}
    for column, known in COLUMNS.items():
        present = [name for name in known if name in names]
        if column == "question" and present == ["instruction", "input"]:
            columns["input"] = names.index(present.pop())
        if len(present) > 1 and column != "id":
            told = " and ".join(header[names.index(name)] for name in present)
            raise ValueError(f"line 1: columns {told} could each be the {column}; rename all but one of them")
        if present:
            columns[column] = names.index(present[0])
    if options := option_columns(header):
        told = ", ".join(header[at] for at in options.values())
        if "options" in columns:
            raise ValueError(
                f"line 1: columns {told} and {header[columns['options']]} could each be the options; rename one"
            )
        if "question" not in columns:
            raise ValueError(f"line 1: columns {told} are options without a column of questions; {found}")
    columns |= options
    _refuse_second(header, columns)
    if "answer" not in columns:
        raise ValueError(f"line 1: no column of answers ({', '.join(COLUMNS['answer'])}); {found}")
    if "image" not in columns and "video" not in columns:
        allowed = ", ".join((*COLUMNS["image"], *COLUMNS["video"]))
        raise ValueError(f"line 1: no column of images or videos ({allowed}); {found}")
    return columns


def _refuse_second(header: list[str], columns: dict[str, int]) -> None:
    """Raises ValueError where a row has further images or videos in columns that are numbered."""
    more = [cell for at, cell in enumerate(header) if at not in columns.values() and is_second(cell)]
    for kind in ("image", "video"):
        if kind in columns and more:
            told = f"columns {header[columns[kind]]} and {', '.join(more)} each hold media of a row"
            raise ValueError(f"line 1: {told}; write all of them into one cell, with ; between them")


def is_second(column: str) -> bool:
    """Whether a column is named as a further one of images or videos: `image2`, `img_path_1`, `image_b`."""
    return bool(_SECOND.fullmatch(_plain(column)))


def _of_split(path: Path, rows: list, columns: dict[str, int], header: list[str], split: str) -> list:
    if "split" not in columns:
        raise ValueError(f"no column split, so no rows of {split}; found: {', '.join(header)}")
    at = columns["split"]
    names = [(cells[at].strip() if at < len(cells) else "").lower() for _, cells in rows]
    told = ", ".join(f"{count} of {name or 'none'}" for name, count in Counter(names).items())
    if not split:
        example = next((name for name in names if name), "train")
        raise ValueError(f"column {header[at]} has rows {told}: name the ones to read, as {path.name}@{example}")
    if split.lower() not in names:
        raise ValueError(f"column {header[at]} has no rows of {split}, only {told}")
    return [row for row, name in zip(rows, names, strict=True) if name == split.lower()]


def _record(path: Path, line: int, cells: list[str], header: list[str], columns: dict[str, int]) -> Record | BadRecord:
    where = f"{path.name}, line {line}"
    if len(cells) != len(header):
        return BadRecord(
            f"{where}: {len(cells)} cells under {len(header)} columns; quote a text that holds the delimiter"
        )
    row = {column: cells[at].strip() for column, at in columns.items()}
    if "input" in row:
        row["question"] = "\n".join(filter(None, (row["question"], row.pop("input"))))
    for column in ("question", "answer", "id"):
        if (cell := row.get(column, "-")) == "" or cell.lower() in NO_VALUE:
            return BadRecord(
                f"{where}, column {header[columns[column]]}: {'is empty' if not cell else f'holds {cell}'}"
            )
    for column in ("weight", "loss", "train", "training"):
        if is_left_out(column, cell := row.get(column, "")):
            told = f"{where}, column {header[columns[column]]}: {cell}, so that nothing is learned; take the row out"
            return BadRecord(told)
    media = {kind: _paths(row.get(kind, "")) for kind in ("image", "video")}
    if not any(media.values()):
        names = " and ".join(header[columns[kind]] for kind in media if kind in columns)
        return BadRecord(f"{where}, column {names}: is empty")
    try:
        choices = read_choices(row)
        answer = answer_of(row["answer"], choices, {name: header[at] for name, at in columns.items() if len(name) == 1})
    except ValueError as error:
        return BadRecord(f"{where}: {error}")
    question = with_options(row.get("question", ""), choices)
    question = question or DESCRIBE.format("image" if media["image"] else "video")
    if not _TAG.search(question):
        question = "".join(f"<{kind}>\n" * len(paths) for kind, paths in media.items()) + question
    turns = [{"from": "system", "value": row["system"]}] if row.get("system") else []
    turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    record = {"id": row.get("id", f"line {line}"), **media, "conversations": turns}
    return record | {"choices": choices} if choices else record


def _paths(cell: str) -> list[str]:
    return [path.strip() for path in re.split(r"[;|]", cell) if path.strip()]
