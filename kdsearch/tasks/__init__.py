"""Tasks: what the labels ask of a student, and how its answers are judged.

A task is one file. These modules import `data` and the modules at the top.
"""
