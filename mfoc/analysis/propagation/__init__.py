"""How signals and gradients pass through depth (Poole et al. 2016; Schoenholz et al. 2017)."""

from mfoc.analysis.propagation.mup import mup_groups, mup_init_
from mfoc.analysis.propagation.orthogonal import delta_orthogonal_, orthogonal_, orthogonal_gain
from mfoc.analysis.propagation.residual import ResidualPropagation
from mfoc.analysis.propagation.width import width_check
from mfoc.analysis.propagation.width_report import WidthCheck

__all__ = [
    "ResidualPropagation",
    "WidthCheck",
    "delta_orthogonal_",
    "mup_groups",
    "mup_init_",
    "orthogonal_",
    "orthogonal_gain",
    "width_check",
]
