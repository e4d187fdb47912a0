"""``python -m benchmarks``: every benchmark in one table."""

import sys

from benchmarks.run_all import main

sys.exit(main())
