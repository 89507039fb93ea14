"""How signals and gradients pass through depth (Poole et al. 2016; Schoenholz et al. 2017)."""

from mfoc.analysis.propagation.diagnosis.diagnose import diagnose as diagnose
from mfoc.analysis.propagation.diagnosis.report import BlockDiagnosis as BlockDiagnosis
from mfoc.analysis.propagation.diagnosis.report import Diagnosis as Diagnosis
from mfoc.analysis.propagation.diagnosis.report import Finding as Finding
from mfoc.analysis.propagation.initialisation.initialise import critical_init_ as critical_init_
from mfoc.analysis.propagation.initialisation.orthogonal import delta_orthogonal_ as delta_orthogonal_
from mfoc.analysis.propagation.initialisation.orthogonal import orthogonal_ as orthogonal_
from mfoc.analysis.propagation.initialisation.report import Initialisation as Initialisation
from mfoc.analysis.propagation.theory.critical import critical_line as critical_line
from mfoc.analysis.propagation.theory.fixed_points import FixedPoint as FixedPoint
from mfoc.analysis.propagation.theory.phases import PhaseDiagram as PhaseDiagram
from mfoc.analysis.propagation.theory.phases import phase_diagram as phase_diagram
from mfoc.analysis.propagation.theory.residual import ResidualPropagation as ResidualPropagation
from mfoc.analysis.propagation.theory.residual_signal import ResidualSignal as ResidualSignal
from mfoc.analysis.propagation.theory.signal import Course as Course
from mfoc.analysis.propagation.theory.signal import SignalPropagation as SignalPropagation
from mfoc.analysis.propagation.width.check import width_check as width_check
from mfoc.analysis.propagation.width.mup import mup_groups as mup_groups
from mfoc.analysis.propagation.width.mup import mup_init_ as mup_init_
from mfoc.analysis.propagation.width.report import WidthCheck as WidthCheck
