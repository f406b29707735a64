"""The version of the package, alone in a file that a build can read."""

__version__ = "0.1.0"
