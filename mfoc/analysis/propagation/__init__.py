"""How signals and gradients pass through depth (Poole et al. 2016; Schoenholz et al. 2017)."""

from mfoc.analysis.propagation.critical import critical_line as critical_line
from mfoc.analysis.propagation.fixed_points import FixedPoint as FixedPoint
from mfoc.analysis.propagation.phases import PhaseDiagram as PhaseDiagram
from mfoc.analysis.propagation.phases import phase_diagram as phase_diagram
from mfoc.analysis.propagation.signal import Course as Course
from mfoc.analysis.propagation.signal import SignalPropagation as SignalPropagation
