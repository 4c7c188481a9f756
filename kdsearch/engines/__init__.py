"""Where trials run: in this process, in worker processes, or on Ray.

An engine takes proposals from the dispatch queue and returns outcomes; it knows no sampler. These
modules import `trials`, `study` and what stands before them.
"""

import os

# Ray reads it at its import, which every module here comes before: without it, Ray prints a message
# for each dead actor to stdout.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
