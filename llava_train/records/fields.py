"""What a record says about its own training: its system text, which answers are learned. Used, or refused by name."""

from __future__ import annotations

import re
from typing import Any

from llava_train.records.record import BadRecord

SYSTEM_KEYS = ("system", "system_prompt")
LEARNED_KEYS = ("weight", "loss", "train", "training")  # of a turn: 0 or false for one that is read and not learned
REFUSED = (  # unless they hold nothing: what they say would be lost
    *("tools", "functions", "tool_calls", "tool_call_id", "function_call", "tool_responses"),
    *("reasoning", "reasoning_content", "thinking", "thought", "train_detail", "mask", "masked", "masks"),
    *("audio", "audios", "history", "chosen", "rejected", "rejected_response"),
)
RECORD_KEYS = (*SYSTEM_KEYS, *LEARNED_KEYS, *REFUSED)
_SYSTEM_WORDS = {"system", "sys", "prompt", "message", "text", "instruction", "instructions"}
_LEARNED_WORDS = {
    *("weight", "weights", "loss", "train", "trained", "training", "trainable", "learn", "learned", "learnable"),
    *("mask", "masked", "supervise", "supervised", "ignore", "ignored", "skip"),
}


def system_text(record: dict[str, Any]) -> str:
    """The system text that stands beside the turns, empty where none does. Raises BadRecord."""
    texts = {key: record[key] for key in SYSTEM_KEYS if record.get(key) not in (None, "")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise BadRecord(f"{key!r} is a {type(text).__name__}, not a text")
    if len(set(texts.values())) > 1:
        raise BadRecord(f"{' and '.join(map(repr, texts))} differ: leave one of them out")
    return next(iter(texts.values()), "")


def refuse_fields(record: dict[str, Any]) -> None:
    """Raises BadRecord where the record itself has a field that would be lost, or is said not to be learned."""
    _refuse(record, "the record")
    for key, value in record.items():
        if key in LEARNED_KEYS and is_left_out(key, value):
            raise BadRecord(f"{key!r} is {value!r} for the whole record: take it out, or say so of its answers")
        words = _words(key)
        if value and key not in SYSTEM_KEYS and words & {"system", "sys"} and words <= _SYSTEM_WORDS:
            raise BadRecord(f"{key!r} of the record is not read: call it 'system'")
        if value is not None and words & {"sample", "loss"} and "weight" in words:
            raise BadRecord(f"{key!r} of the record is not read: call it 'weight'")


def is_learned(turn: dict[str, Any], is_answer: bool) -> bool:
    """Whether the loss sees this turn. Raises BadRecord where it says what cannot be: a share, a question learned."""
    _refuse(turn, "a turn")
    for key, value in turn.items():
        if value is not None and key not in (*LEARNED_KEYS, *REFUSED) and _words(key) & _LEARNED_WORDS:
            raise BadRecord(f"{key!r} of a turn is not read: call it 'weight', 1 for an answer that is learned, else 0")
    said = {key: turn[key] for key in LEARNED_KEYS if turn.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise BadRecord(
                f"{key!r} of a turn is {value!r}: an answer is learned, 1 or true, or read alone, 0 or false"
            )
        if value and not is_answer:
            raise BadRecord(f"{key!r} of a turn that is no answer is {value!r}: only answers are learned")
    if len({bool(value) for value in said.values()}) > 1:
        raise BadRecord(f"{' and '.join(map(repr, said))} of a turn contradict each other")
    return is_answer and all(said.values())


def _words(key: str) -> set[str]:
    """Worked case: `systemPrompt`, `system-prompt` -> system, prompt; `LOSS` -> loss."""
    return {*re.findall("[a-z]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())}


def _refuse(fields: dict[str, Any], where: str) -> None:
    if found := next((key for key in REFUSED if fields.get(key)), None):
        raise BadRecord(f"{found!r} of {where} is not trained on: write it into the texts, or take it out")


NOT_LEARNED = ("false", "no", "f", "n", "off")  # of weight, loss, train or training


def is_left_out(field: str, value: Any) -> bool:
    """Whether `weight`, `loss`, `train` or `training` of a whole record keep it from being learned as all others are:
    0, false or no; of `weight` any share. A text is read as what it says; other texts and figures say nothing."""
    if isinstance(value, str):
        if value.strip().lower() in NOT_LEARNED:
            return True
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, int | float) and (not value or (field == "weight" and value != 1))
