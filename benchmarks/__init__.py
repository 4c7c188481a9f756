"""What kdsearch costs and gains, measured beside what a good user would write without it.

`python -m benchmarks` lists the scripts, `python -m benchmarks NAME --help` explains one.
"""
