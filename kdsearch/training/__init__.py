"""Train one student: the step, optimisers, distillation losses, teacher cache, checkpoints.

Nothing here knows of studies, trials or budgets. These modules import `methods`, `models`, `tasks`,
`data` and what stands before them.
"""
