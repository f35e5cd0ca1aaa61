"""`python -m llava_train` in a process forked from one that has imported it: real processes without the import time."""

import atexit
import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: F401
import matplotlib.pyplot  # noqa: F401
from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401
from transformers.models.llava_onevision import modeling_llava_onevision, processing_llava_onevision  # noqa: F401
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
from transformers.models.siglip import modeling_siglip  # noqa: F401

from llava_train.cli.main import main
from llava_train.train.run import stages  # noqa: F401


def run(words: list[str], environ: dict[str, str], log: str) -> None:
    """Ends with the command's exit code; what it prints goes to `log`."""
    os.environ.update(environ)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = main(words)
    atexit._run_exitfuncs()  # multiprocessing leaves them out
    sys.exit(code)
