"""One file a command or public function: run, distill, search, check, export.

A workflow puts the other packages together and leaves the work to them. Only `cli` imports these.
"""
