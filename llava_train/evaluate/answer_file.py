"""A file of answers that grows: a line per prompt, so that a second call goes on where the first one ended.

`FILE.jsonl` holds {id, answer, asked} per line, `asked` a digest of the prompt. Beside it lie `FILE.settings.json`,
what answered it, and `FILE.refused.jsonl`, the prompts of the last call that could not be asked, where there are any.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_train.config.typed import shown
from llava_train.data.samples.prompts import Prompt
from llava_train.data.samples.sample import Sample
from llava_train.shared.errors import ConfigError, DataError, Fault, RunError, counted
from llava_train.shared.json_files import read_json
from llava_train.shared.progress import tracked
from llava_train.shared.whole_files import write_json, write_whole

Ask = Callable[[Sequence[Sample]], Iterator[str | DataError]]
NAMED = 5  # refused prompts that are told


class AnswerFile:
    """The answers in `path`, held by one process at a time while it is open as a context.

    settings: what answers depend on, by key of the configuration. Raises ConfigError where it was begun with others,
    RunError where another process holds it, DataError where a line is none of ours.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path = path
        self._refused = path.with_suffix(".refused.jsonl")
        noted = path.with_suffix(".settings.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            _same_settings(path, noted, settings)
        self._file = path.open("a+", encoding="utf-8", newline="\n")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise RunError(
                f"{path}: another process is writing to it\n    -> wait for it, or set another out="
            ) from error
        write_json(noted, settings)
        self._digests = self._read()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def missing(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Those without an answer. Raises DataError where one was answered in another wording or about other media."""
        for prompt in prompts:
            known = self._digests.get(prompt.id)
            if known and not isinstance(prompt.asked, DataError) and known != prompt.digest:
                detail = f"{self._path} has an answer to what it asked before; remove that line, or set another out="
                raise prompt.asked.error("changed prompt", detail)
        return [prompt for prompt in prompts if prompt.id not in self._digests]

    def answer(self, prompts: Sequence[Prompt], ask: Ask, skip: bool) -> str:
        """Appends the answers of `ask` and says how many they are.

        Raises the DataError of the first prompt that cannot be asked, or with `skip` lists them all.
        """
        refused = [(prompt, prompt.asked) for prompt in prompts if isinstance(prompt.asked, DataError)]
        if refused and not skip:
            raise refused[0][1]
        asked = [(prompt, prompt.asked) for prompt in prompts if isinstance(prompt.asked, Sample)]
        outcomes = ask([sample for _, sample in asked])
        for (prompt, _), outcome in zip(asked, tracked(outcomes, len(asked), "answered"), strict=True):
            if isinstance(outcome, str):
                line = {"id": prompt.id, "answer": outcome, "asked": prompt.digest}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self._file.flush()
            elif skip:
                refused.append((prompt, outcome))
            else:
                raise outcome
        lines = [
            json.dumps({"id": p.id, "reason": e.reason, "detail": e.detail}, ensure_ascii=False) for p, e in refused
        ]
        self._refused.unlink(missing_ok=True)
        if lines:
            write_whole(self._refused, "\n".join(lines) + "\n")
        done = f"{len(prompts) - len(refused)} answered, {len(self._digests)} were there: {self._path}"
        return "\n".join([done, *_told([error for _, error in refused], self._refused)])

    def _read(self) -> dict[str, str]:
        """id -> digest of each whole line; what follows the last newline is the beginning of a lost one, and goes."""
        text = self._path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            self._file.truncate(whole)
        digests = {}
        for i, line in enumerate(text[:whole].splitlines(), 1):
            try:
                content = json.loads(line)
                digests[str(content["id"])] = str(content["asked"])
            except (ValueError, KeyError, TypeError) as error:
                detail = f"{line[:80].decode(errors='replace')}; remove it, or set another out="
                raise DataError(self._path.name, f"line {i}", "no answer of ours", detail) from error
        return digests


def _same_settings(path: Path, noted: Path, settings: dict[str, Any]) -> None:
    if not noted.is_file():
        remedy = "set another out=ANSWERS.jsonl"
        raise ConfigError.one("out", f"{path} is there, without the {noted.name} of ours", remedy)
    before = read_json(noted)
    settings = json.loads(json.dumps(settings))
    faults = []
    for key in sorted({*before, *settings}):
        then, now = before.get(key), settings.get(key)
        if then != now:
            remedy = "set another out=, or what it was before"
            faults.append(Fault(key, f"is {shown(now)}; {path} was begun with {shown(then)}", remedy))
    if faults:
        raise ConfigError(faults)


def _told(refused: Sequence[DataError], listed: Path) -> list[str]:
    if not refused:
        return []
    reasons = counted(error.reason for error in refused)
    lines = [f"{len(refused)} could not be asked ({reasons}), listed in {listed}:"]
    return lines + [f"    {error}" for error in refused[:NAMED]]
