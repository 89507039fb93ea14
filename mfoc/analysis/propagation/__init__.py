"""How signals and gradients pass through depth: order, chaos and criticality (Poole et al. 2016; Schoenholz et al. 2017)."""

from mfoc.analysis.propagation.orthogonal import delta_orthogonal_, orthogonal_, orthogonal_gain

__all__ = ["delta_orthogonal_", "orthogonal_", "orthogonal_gain"]
