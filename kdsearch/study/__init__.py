"""A study on disk: its configuration, its trials, and the rules that end or resume it.

Optuna's storage is the one record of trials. These modules import no torch; of other packages they
use `hpo`, and for names and checks `models` and `training`, imported late.
"""
