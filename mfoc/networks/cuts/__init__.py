"""A network cut into stages at named submodules: the state at a cut is whatever is alive there.

``cut`` reads the forward pass by symbolic tracing where it can (``tracing``, ``alive``, ``segments``) and otherwise
runs the network itself up to the next cut (``hooked``).

This is below ``from_module``: it does not check its arguments.
"""

from mfoc.networks.cuts.cutting import cut, shared_between
from mfoc.networks.cuts.fingerprints import fingerprint

__all__ = ["cut", "fingerprint", "shared_between"]
