"""Price a student and ship it: FLOPs, latency, exported files, the folder that is delivered.

A file is loaded by its own runtime and measured before it counts. These modules import `training`,
`study`, `training`, `models`, `data` and the modules at the top.
"""
