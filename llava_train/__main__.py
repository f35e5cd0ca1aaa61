"""`python -m llava_train`: see `llava_train.cli.main`."""

import sys

from llava_train.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
