"""Which family a model is of, and that no other room knows a family by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llava_train
from llava_train.family.registry import FAMILIES, checkpoint_fault, family_of, family_of_parts

PACKAGE = Path(llava_train.__file__).parent
NAMES = re.compile(r"one_?vision|llava_?1_?5|llava_?next|llava_?interleave", re.IGNORECASE)
PROSE = re.compile(r"LLaVA-(OneVision|1\.5|NeXT|Interleave)")  # the systems' names, as texts for people have them


def names_of_families(code: str) -> Iterator[str]:
    """Identifiers and string literals, docstrings aside, that name a family."""
    tree = ast.parse(code)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            words = [PROSE.sub("", node.value)] if isinstance(node.value, str) and id(node) not in docstrings else []
        else:
            fields = ("id", "attr", "name", "arg", "module", "asname")
            words = [word for field in fields if isinstance(word := getattr(node, field, None), str)]
        yield from (word for word in words if NAMES.search(word))


def test_no_other_room_names_a_family():
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "family" not in path.parents]
    assert len(files) > 200
    found = {str(path.relative_to(PACKAGE)): [*names_of_families(path.read_text())] for path in files}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from a.onevision.b import c", 1),
        ("x = LlavaNextConfig", 1),
        ("def f(llava15): pass", 1),
        ("kind == 'llava_interleave'", 1),
        ("x = 'the recipe of LLaVA-OneVision'", 0),
        ("'As in llava_onevision.'", 0),
    ],
)
def test_names_are_seen(code, found):
    assert len([*names_of_families(code)]) == found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_finds_its_family(family):
    assert family_of({"model_type": family.model_type}) is family


def test_no_family_is_said_with_what_was_looked_at():
    with pytest.raises(LookupError, match="model_type mllama"):
        family_of({"model_type": "mllama"})
    fault = checkpoint_fault("DIR", {"model_type": "mllama"})
    assert fault
    assert fault.problem == "DIR holds a mllama model, not llava_onevision"


def test_a_tower_finds_the_family_that_joins_it():
    assert family_of_parts({"model_type": "siglip"}) is FAMILIES[0]
