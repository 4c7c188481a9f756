"""Price a student and export it: FLOPs, latency, files in several formats, the folder best/.

Each file is loaded by its own runtime and measured. These modules import `study`, `training`,
`models`, `tasks`, `data` and the modules at the top.
"""
