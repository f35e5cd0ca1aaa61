"""Three meetings of all ranks, the last of which rank 1 spoils. usage, on each rank: guard_worker.py differ|hang"""

import sys
import time

from llava_train.ranks.process_group import start_ranks
from llava_train.ranks.step_guard import Guard
from llava_train.shared.errors import RunError

if __name__ == "__main__":
    try:
        with start_ranks() as ranks:
            guard = Guard(ranks, max_wait=2)
            for step in (10, 11):
                counts = guard.meet(step, {"micro-batches": 4}, [ranks.rank, step])
                assert counts == [[0, step], [1, step], [2, step]], counts
            spoils = ranks.rank == 1
            if spoils and sys.argv[1] == "hang":
                time.sleep(600)
            guard.meet(12, {"micro-batches": 5 if spoils else 4}, [0])
    except RunError as error:
        print("TOLD", error, flush=True)
