"""AutoML for knowledge distillation in computer vision, under a budget that holds."""

import logging

from kdsearch.errors import StopStudy

__all__ = ["StopStudy", "__version__"]
__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
