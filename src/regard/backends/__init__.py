"""Who computes exact attention. A literal tuple: what exists does not depend on what was imported."""

from regard.backends._base import Backend as Backend
from regard.backends._base import Problem as Problem
from regard.backends._base import Support as Support
from regard.backends.eager import Eager as Eager
from regard.backends.flex import Flex as Flex
from regard.backends.native import Native as Native
from regard.backends.sdpa import Sdpa as Sdpa

BACKENDS: tuple[Backend, ...] = (Native(), Sdpa(), Flex(), Eager())
"""Every backend, in the order in which "auto" asks them on a GPU."""

__all__ = ["BACKENDS", "Backend", "Eager", "Flex", "Native", "Problem", "Sdpa", "Support"]
