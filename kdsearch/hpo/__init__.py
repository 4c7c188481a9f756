"""Samplers, early stopping, Pareto fronts and statistics; numpy and Optuna, no torch.

These modules work on parameters, curves and costs, not on images or networks.
They import only the modules at the top of kdsearch.
"""
