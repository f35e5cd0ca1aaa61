"""What docs/slurm.md tells people to type is what runs here."""

import re
import shlex

import pytest
from submitted import ROOT, Job, losses

from llava_train.cli.main import VERBS
from llava_train.config.load import load

pytestmark = pytest.mark.slurm
DOCS = (ROOT / "docs/slurm.md").read_text()
COMMANDS = re.findall(r"^    ((?:sbatch|python -m llava_train|source) .*)", DOCS, re.MULTILINE)
SUBMISSIONS = [shlex.split(line) for line in COMMANDS if line.startswith("sbatch")]


def test_the_site_file_is_sound_shell(cluster):
    assert "source slurm/site.sh" in COMMANDS
    told = cluster.run("bash", "-euc", "source slurm/site.sh && echo $RANKS_PER_NODE ${RUN[@]}", cwd=ROOT)
    assert told.split() == ["8", ".venv/bin/python", "-m", "llava_train"]


@pytest.mark.parametrize("words", SUBMISSIONS, ids=" ".join)
def test_a_submission_is_accepted(cluster, words):
    """As it stands but for the number of nodes; its settings compose."""
    asked = [re.sub(r"^--nodes=\d+", "--nodes=2", word) for word in words]
    cluster.run("sbatch", "--test-only", *asked[1:], cwd=ROOT)
    assert load(words[words.index("slurm/train.sbatch") + 1 :]).stages


def test_other_commands_are_known():
    others = [shlex.split(line)[3:] for line in COMMANDS if line.startswith("python")]
    assert {words[0] for words in others} == {"plan", "status"} <= set(VERBS)
    [plan] = [words[1:] for words in others if words[0] == "plan"]
    assert load(plan).plan.world_size == 256


def test_the_suite_submits_as_the_docs_do():
    assert ["sbatch", "--nodes=2", "slurm/train.sbatch", "+recipe=tiny"] in SUBMISSIONS


def test_a_chain_goes_on_where_requeueing_is_forbidden(cluster, tmp_path):
    [chain] = [words for words in SUBMISSIONS if "--no-requeue" in words]
    options = tuple(word.replace("1-8", "1-2") for word in chain[2 : chain.index("slurm/train.sbatch")])
    job = Job(cluster, tmp_path / "run", options=("--nodes=1", *options))
    job.wait(job.segments)
    job.id = job.segments()[0]["job"]  # each job of an array has a number of its own
    with job.held(3):
        cluster.run("scancel", "--batch", "--signal=USR1", job.id)
        job.wait(lambda: "SIGUSR1" in job.out())
    cluster.wait_until(lambda: not cluster.run("squeue", "--noheader"))
    assert job.outcomes() == ["stopped", "done"]
    assert len({segment["job"] for segment in job.segments()}) == 2
    assert len(losses(job.run)) == 8
