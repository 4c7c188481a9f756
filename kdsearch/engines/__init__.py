"""Where trials run: in this process, in worker processes, or on Ray.

An engine takes proposals from the dispatch queue and returns outcomes; it knows no sampler. These
modules import `trials`, `study` and what stands before them.
"""
