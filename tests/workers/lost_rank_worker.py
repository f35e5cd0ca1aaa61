"""Rank 1 dies while the others wait for it. usage, on each rank: lost_rank_worker.py barrier|gather|sum"""

import os
import signal
import sys
import time

from llava_train.ranks.process_group import start_ranks
from llava_train.shared.errors import RunError

if __name__ == "__main__":
    try:
        with start_ranks() as ranks:
            waits = {"barrier": ranks.barrier, "gather": lambda: ranks.gather("a"), "sum": lambda: ranks.sum(1.0)}
            wait = waits[sys.argv[1]]
            wait()
            if ranks.rank == 1:
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            wait()
            wait()
    except RunError as error:
        print("TOLD", error, flush=True)
