"""Every way to get a frozen teacher: by name, from a file, a study, or trained on the spot.

A teacher is a frozen `Model`. These modules import `training` and what stands before it.
"""
