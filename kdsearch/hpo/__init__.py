"""Sampling, early stopping and statistics: numpy and Optuna alone, no torch.

These modules know parameters, curves and costs, and nothing of images or networks.
They import only the modules at the top of kdsearch.
"""
