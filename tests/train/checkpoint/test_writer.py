"""A checkpoint goes on bit for bit on as many ranks, and to rounding on another number or at another ZeRO level."""

import json

import pytest
from saver_worker import CUT

CASES = ["0,0,fp32", "1,0,fp32", "2,0,fp32", "3,0,fp32", "2,1,fp32", "3,1,fp32", "0,0,bf16", "2,0,bf16", "3,0,bf16"]


def results(printed: str) -> list[list[float]]:
    return [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]


def tasks(part: str, folder, cases: list[str], *suffix: str) -> list[str]:
    return [":".join([part, str(folder / str(i)), case, *suffix]) for i, case in enumerate(cases)]


@pytest.mark.parametrize(("num_ranks", "suffix"), [pytest.param(1, [], marks=pytest.mark.slow), (2, ["background"])])
def test_as_many_ranks_go_on_bit_for_bit(torchrun, tmp_path, num_ranks, suffix):
    words = [
        *tasks("whole", tmp_path, CASES),
        *tasks("first", tmp_path, CASES, *suffix),
        *tasks("second", tmp_path, CASES),
    ]
    losses = results(torchrun(num_ranks, "saver_worker.py", *words))
    n = len(CASES)
    assert len(losses) == 3 * n
    for case, whole, first, second in zip(CASES, losses[:n], losses[n : 2 * n], losses[2 * n :], strict=True):
        assert first + second == whole, case
        assert len(first) == CUT


@pytest.mark.parametrize(
    ("before", "after", "shift"),
    [(2, 1, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 4, 0), (1, 2, 0), (4, 2, 1)))],
)
def test_another_number_of_ranks_or_level_goes_on_to_rounding(torchrun, tmp_path, before, after, shift):
    fp32 = [case for case in CASES if case.endswith("fp32")]
    other = fp32[shift:] + fp32[:shift]
    torchrun(before, "saver_worker.py", *tasks("first", tmp_path, fp32))
    words = [*tasks("whole", tmp_path, fp32[:1]), *tasks("second", tmp_path, other)]
    whole, *seconds = results(torchrun(after, "saver_worker.py", *words))
    assert len(seconds) == len(fp32)
    for case, second in zip(other, seconds, strict=True):
        assert second == pytest.approx(whole[CUT:], rel=1e-5), case
