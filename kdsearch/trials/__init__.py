"""One trial, step by step: build, price, reject or train, evaluate.

`context` holds what all trials of a study share; `trial` is the order of the steps. These modules
import everything except `engines`, `workflows` and `cli`.
"""
