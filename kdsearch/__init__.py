"""AutoML for knowledge distillation in computer vision, under a budget that holds."""

__all__ = ["__version__"]
__version__ = "0.1.0"
