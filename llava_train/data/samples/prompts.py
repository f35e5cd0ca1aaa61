"""Prompts to be answered: of the command line, and of a JSON or JSONL file, as `Sample`s.

A record of a file: `prompt`, a text, or `conversations` as in training data, whose last answer is left out; `images`
and `videos` (or `image`, `video`), each a path or a list; and `id`, else its position names it. Other keys are passed
over.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_train.data.samples.parse import BadRecord, MediaRoots, record_id, to_sample
from llava_train.data.samples.sample import Sample, Turn
from llava_train.records.chat_messages import with_one_name
from llava_train.records.lost_media import standing_tag
from llava_train.records.media_paths import inside
from llava_train.records.readers.open import open_source, record_of
from llava_train.records.tags import IMAGE_TAG, TAGS, VIDEO_TAG
from llava_train.shared.errors import DataError
from llava_train.text.base import MediumKind


@dataclass(frozen=True)
class Prompt:
    """One record: what it asks, or why it asks nothing."""

    id: str
    asked: Sample | DataError

    @property
    def digest(self) -> str:
        """Of all that is asked, media by their paths."""
        assert isinstance(self.asked, Sample)
        content = [self.asked.turns, [str(path) for path in (*self.asked.images, "|", *self.asked.videos)]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_prompts(path: Path, root: Path, system: str) -> list[Prompt]:
    """All records of a file. `system`: of those that have no system turn. Raises DataError where two have one id."""
    records = map(record_of, open_source(path, path.name))
    prompts = [_prompt(record, path.name, i, root, system) for i, record in enumerate(records)]
    twice = [identity for identity, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if twice:
        raise DataError(path.name, twice[0], "id used twice", "answers are told apart by it; give each record its own")
    return prompts


def _prompt(record: Any, source: str, position: int, root: Path, system: str) -> Prompt:
    identity = record_id(record, position)
    try:
        sample = to_sample(_as_training_data(record), source, position, MediaRoots(root, outside=True))
        if sample.is_tagged_text and (tag := standing_tag(sample.turns)):
            raise sample.error("bad record", f"{tag} stands in it, and it lists no image or video: give the path")
    except DataError as error:
        return Prompt(identity, error)
    if system and sample.turns[0].role != "system":
        sample = replace(sample, turns=[Turn("system", system), *sample.turns])
    return Prompt(identity, sample)


def _as_training_data(record: Any) -> Any:
    """The record by the keys of training data; what is no such record comes back for `to_sample` to refuse."""
    if not isinstance(record, dict):
        return record
    for key in (key for kind in TAGS for key in (kind, f"{kind}s")):
        if isinstance(listed := record.get(key), list) and any(entry in (None, "") for entry in listed):
            return BadRecord(f"{key!r} lists an entry that holds nothing: give its path, or take it out")
    if "conversation" in record and "conversations" in record:
        return BadRecord("has 'conversation' and 'conversations': leave one of them out")
    try:
        renamed = with_one_name({"conversations" if k == "conversation" else k: value for k, value in record.items()})
    except BadRecord as error:
        return error
    if "prompt" not in record:
        return renamed
    text = record["prompt"]
    if "conversations" in renamed or not isinstance(text, str) or not text.strip():
        return BadRecord("write either prompt, a text, or conversations")
    kinds: list[MediumKind] = []
    for kind in TAGS:
        value = renamed.get(kind) or []
        kinds += [kind] * (len(value) if isinstance(value, list) else 1)
    return {**renamed, "conversations": [{"from": "human", "value": with_tags(text, kinds)}]}


def prompt_sample(text: str, images: Sequence[str], videos: Sequence[str], system: str) -> Sample:
    """A prompt of the command line. Raises DataError for what is no path."""
    kinds: list[MediumKind] = ["image" for _ in images]
    kinds += ["video" for _ in videos]
    turns = [Turn("human", with_tags(text, kinds))]
    if system:
        turns.insert(0, Turn("system", system))
    files = [*map(named_file, images)], [*map(named_file, videos)]
    return Sample("prompt", "generate", turns, *files, record="prompt")


def named_file(entry: str) -> Path:
    """An image or video as a user names it, relative to the working directory. Raises DataError for what is no path."""
    try:
        return inside(Path(), entry, None)
    except BadRecord as error:
        raise DataError("generate", "prompt", "bad record", str(error)) from error


def with_tags(text: str, kinds: Sequence[MediumKind]) -> str:
    """A text with tags is taken as written. One without gets those of its media before it, as the chat template renders
    such a message: a newline after each.

    Worked case: `What?`, two images -> `<image>\\n<image>\\nWhat?`.
    """
    if IMAGE_TAG in text or VIDEO_TAG in text:
        return text
    if len(kinds) == 1:
        text = text.strip()
    glue = "" if text.startswith("\n") or not kinds else "\n"
    return "\n".join(TAGS[kind] for kind in kinds) + glue + text
