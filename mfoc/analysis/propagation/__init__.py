"""How signals and gradients pass through depth (Poole et al. 2016; Schoenholz et al. 2017)."""

from mfoc.analysis.propagation.critical import critical_line as critical_line
from mfoc.analysis.propagation.diagnosis import diagnose as diagnose
from mfoc.analysis.propagation.fixed_points import FixedPoint as FixedPoint
from mfoc.analysis.propagation.report import BlockDiagnosis as BlockDiagnosis
from mfoc.analysis.propagation.report import Diagnosis as Diagnosis
from mfoc.analysis.propagation.report import Finding as Finding
from mfoc.analysis.propagation.signal import Course as Course
from mfoc.analysis.propagation.signal import SignalPropagation as SignalPropagation
