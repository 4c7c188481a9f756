"""Students that start from the weights of another network, whole or with parts left out.

`source` finds the weights, `library` reads them into a network of timm or torchvision.
"""
