"""Where `plainly` used to be."""

from ._plainly import plainly

__all__ = ["plainly"]
