"""No call of transformers may run code that lies beside a checkpoint."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llava_train"
LOADERS = ("from_pretrained", "from_config", "get_config_dict", "pipeline", "get_class_from_dynamic_module")
NO_CODE = ("PeftConfig.from_pretrained",)  # of PEFT, which reads JSON and runs none


def loading_calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call that loads by transformers, as it is written, through names that stand for one as well."""
    tree = ast.parse(source)
    aliases = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_loader(node.value)
    } | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_loader(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (_is_loader(node.func) or ast.unparse(node.func) in aliases):
            yield ast.unparse(node.func), node


def _is_loader(node: ast.AST | None) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in LOADERS) or (
        isinstance(node, ast.Name) and node.id in LOADERS
    )


def refuses_code(call: ast.Call) -> bool:
    return any(
        keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) == "False" for keyword in call.keywords
    )


def unsafe(source: str) -> list[str]:
    return [name for name, call in loading_calls(source) if name not in NO_CODE and not refuses_code(call)]


def test_every_call_that_loads_refuses_code():
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    assert sum(len(list(loading_calls(source))) for source in sources.values()) > 12
    assert {str(path.relative_to(PACKAGE)): found for path, s in sources.items() if (found := unsafe(s))} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "AutoTokenizer.from_pretrained(folder)",
        "AutoConfig.from_pretrained(folder, **options)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=allowed)",
        "PretrainedConfig.get_config_dict(folder)",
        "pipeline('image-text-to-text', model=folder)",
        "load: Any = Model.from_pretrained\nload(folder)",
        "load = Model.from_pretrained\nload(folder)",
    ],
)
def test_a_call_that_does_not_is_found(planted):
    assert unsafe(planted)
