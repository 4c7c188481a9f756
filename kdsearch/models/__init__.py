"""Networks: student families, pretrained weights, and the features of any network.

A network here is a `torch.nn.Module` with its preprocessing; training it is `training`'s work.
These modules import only `tasks`, `data`, `hpo` and the modules at the top.
"""
