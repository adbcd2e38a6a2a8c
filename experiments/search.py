"""Search, recover, pack and measure under a size budget: the same as `autoquant search`.

    python experiments/search.py --budget-mib 6
"""

import sys

from autoquant.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
