"""The version of the package; imports nothing."""

__version__ = "0.2.0.dev0"

__all__ = ["__version__"]
