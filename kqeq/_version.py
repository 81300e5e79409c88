"""The version of the package; imports nothing."""

__version__ = "0.1.0"

__all__ = ["__version__"]
