"""What stands at the leaves of our pytrees."""

from typing import Any

Leaf = Any
"""A device array; or, in a tree of the same structure, a NumPy array on its way there, its shape
and dtype, or its partition over the mesh."""
