"""How signals and gradients pass through depth (Poole et al. 2016; Schoenholz et al. 2017)."""

from mfoc.analysis.propagation.critical import critical_line as critical_line
from mfoc.analysis.propagation.diagnosis import diagnose as diagnose
from mfoc.analysis.propagation.fixed_points import FixedPoint as FixedPoint
from mfoc.analysis.propagation.initialisation import Initialisation as Initialisation
from mfoc.analysis.propagation.initialise import critical_init_ as critical_init_
from mfoc.analysis.propagation.mup import mup_groups as mup_groups
from mfoc.analysis.propagation.mup import mup_init_ as mup_init_
from mfoc.analysis.propagation.orthogonal import delta_orthogonal_ as delta_orthogonal_
from mfoc.analysis.propagation.orthogonal import orthogonal_ as orthogonal_
from mfoc.analysis.propagation.orthogonal import orthogonal_gain as orthogonal_gain
from mfoc.analysis.propagation.phases import PhaseDiagram as PhaseDiagram
from mfoc.analysis.propagation.phases import phase_diagram as phase_diagram
from mfoc.analysis.propagation.report import BlockDiagnosis as BlockDiagnosis
from mfoc.analysis.propagation.report import Diagnosis as Diagnosis
from mfoc.analysis.propagation.report import Finding as Finding
from mfoc.analysis.propagation.residual import ResidualPropagation as ResidualPropagation
from mfoc.analysis.propagation.residual_signal import ResidualSignal as ResidualSignal
from mfoc.analysis.propagation.signal import Course as Course
from mfoc.analysis.propagation.signal import SignalPropagation as SignalPropagation
from mfoc.analysis.propagation.width import width_check as width_check
from mfoc.analysis.propagation.width_report import WidthCheck as WidthCheck
