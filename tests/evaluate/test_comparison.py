"""Two evaluations of the same questions: their scores and what changed."""

import json

import pytest

from llava_train.cli.main import main
from llava_train.evaluate.comparison import compare, read_scores


def write(folder, scores, source="dials"):
    """An evaluation with a question for each score, as `evaluate` writes it."""
    folder.mkdir(exist_ok=True)
    with (folder / "predictions.jsonl").open("a") as file:
        for i, score in enumerate(scores):
            file.write(json.dumps({"source": source, "record": str(i), "question": "which?", "score": score}) + "\n")
    return folder


def changes(tmp_path, before, after):
    return compare(*(read_scores(write(tmp_path / name, s)) for name, s in (("before", before), ("after", after))))


def test_difference_is_taken_question_by_question(tmp_path):
    """The same 90 of 100 right: no difference at all, though each score's own interval is wide."""
    change = changes(tmp_path, [1.0] * 90 + [0.0] * 10, [1.0] * 90 + [0.0] * 10)["dials"]
    assert change.score.value == 0.9
    assert change.score.high - change.score.low > 0.1
    assert (change.difference.low, change.difference.value, change.difference.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"),
    [(30, 2, "up"), (2, 30, "down"), (8, 7, "as before"), (0, 1, "as before")],
)
def test_verdict_needs_an_interval_without_zero(tmp_path, gained, lost, verdict):
    before = [0.0] * gained + [1.0] * lost + [1.0] * (100 - gained - lost)
    after = [1.0] * gained + [0.0] * lost + [1.0] * (100 - gained - lost)
    change = changes(tmp_path, before, after)["dials"]
    assert change.difference.value == pytest.approx((gained - lost) / 100)
    assert change.verdict == verdict


def test_table_has_a_column_for_each_source_and_rows_for_each_evaluation(tmp_path, capsys):
    for name, right in (("base", 0.0), ("adapted", 1.0), ("control", 0.0)):
        write(write(tmp_path / name, [right] * 20), [1.0] * 10, source="shapes")
    after = f"after=[{tmp_path / 'adapted'},{tmp_path / 'control'}]"
    assert main(["compare", f"before={tmp_path / 'base'}", after]) == 0
    told = capsys.readouterr().out
    for words in ("dials", "20 questions", "shapes", "10 questions", "base", "adapted", "control", "+1.000", "up"):
        assert words in told


def test_other_questions_are_refused_by_source(tmp_path, capsys):
    before, after = write(tmp_path / "a", [1.0] * 3), write(tmp_path / "b", [1.0] * 4)
    assert main(["compare", f"before={before}", f"after=[{after}]"]) == 2
    told = capsys.readouterr().err
    assert "dials" in told
    assert "3 before, 4 after" in told
    assert "same data.file" in told


def test_folders_without_an_evaluation_are_named_together(tmp_path, capsys):
    assert main(["compare", f"before={tmp_path}", f"after=[{tmp_path / 'none'}]"]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "none") in told
    assert told.count("evaluate") == 2
    assert main(["compare", f"before={tmp_path}"]) == 2
    assert "after" in capsys.readouterr().err


def test_questions_may_hold_any_characters(tmp_path):
    said = {"source": "s", "record": "1", "question": "a\u2028b\u2029c\u0085d", "score": 1.0}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(said, ensure_ascii=False) + "\n")
    assert read_scores(tmp_path) == {"s": [(("1", said["question"]), 1.0)]}
