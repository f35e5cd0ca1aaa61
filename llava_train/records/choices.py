"""The options of a question in a table: which columns hold them, and what becomes of its question and answer."""

from __future__ import annotations

import ast
import re
from string import ascii_uppercase, digits

_OPTION = re.compile(r"([A-Za-z])|(?i:option|choice|opt)(?:[ _-]?([A-Z0-9])|[ _-]([a-z]))")  # a column of one option


def option_columns(header: list[str]) -> dict[str, int]:
    """By letter: `A`, `B` and on, or `option_a`, or `option1`; two at least. Raises ValueError for others."""
    found = {
        next(filter(None, m.groups())).upper(): at for at, cell in enumerate(header) if (m := _OPTION.fullmatch(cell))
    }
    if len(found) < 2 or found.keys().isdisjoint("A01"):  # x and y are no options
        return {}
    for names in (ascii_uppercase, digits, digits[1:]):
        if sorted(found) == list(names[: len(found)]):
            return {letter: found[name] for letter, name in zip(ascii_uppercase, names, strict=False) if name in found}
    told = ", ".join(header[at] for at in found.values())
    raise ValueError(f"line 1: columns {told} are options with a gap; name them A, B and on")


def read_choices(row: dict[str, str]) -> dict[str, str]:
    """The options of a row by letter, without those that are empty. Raises ValueError."""
    if cell := row.get("options"):
        try:
            options = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f'{cell[:60]!r} is no list; write ["red", "blue"]') from error
        if not isinstance(options, list) or not 1 < len(options) <= len(ascii_uppercase):
            raise ValueError(f"{cell[:60]!r} is no list of 2 to {len(ascii_uppercase)} options")
        return dict(zip(ascii_uppercase, map(str, options), strict=False))
    return {name: text for name, text in row.items() if name in ascii_uppercase and text}


def answer_of(answer: str, choices: dict[str, str], columns: dict[str, str]) -> str:
    """As it is, but for what names an option, which becomes its letter: the letter in lower case, the name of its
    column, its number from 0 on. Raises ValueError for another number, and where the columns are numbered from 1.

    columns: by letter, of options that have one each. Worked case, A: cat, B: dog: `1` and `b` -> B, `B` and `dog`
    stay; in columns option1 and option2 `option1` -> A, `1` is refused; with A: 2, B: 3 `1` stays.
    """
    if not choices or answer in choices.values():
        return answer
    if not answer.isdecimal():
        named = {name.lower(): letter for letter, name in columns.items() if letter in choices}
        return named.get(answer.lower(), answer.upper() if answer.upper() in choices else answer)
    if any(text.strip().isdecimal() for text in choices.values()):
        return answer
    if columns.get("A", "").endswith("1"):
        raise ValueError(f"answer {answer} may be counted from 0 or from 1; write the letter, or {columns['A']} and on")
    if int(answer) >= len(choices):
        raise ValueError(f"answer {answer} is no number of an option, from 0 on; write the letter")
    return list(choices)[int(answer)]


def with_options(question: str, choices: dict[str, str]) -> str:
    """A line for each option, unless the question has them. Worked case: `Which?` -> `Which?\nA. red\nB. blue`."""
    if all(re.search(rf"^\W*{letter}\W", question, re.MULTILINE) for letter in choices):
        return question
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.items())])
