"""Kernels of networks: in the limit of infinite width, and of the network at hand (Jacot, Gabriel & Hongler 2018)."""

from mfoc.analysis.kernel.convergence import NTKConvergence as NTKConvergence
from mfoc.analysis.kernel.convergence import ntk_convergence as ntk_convergence
from mfoc.analysis.kernel.empirical import empirical_ntk as empirical_ntk
from mfoc.analysis.kernel.fitted import FittedKernel as FittedKernel
from mfoc.analysis.kernel.fitted import Prediction as Prediction
from mfoc.analysis.kernel.infinite import InfiniteKernels as InfiniteKernels
from mfoc.analysis.kernel.infinite import infinite_kernels as infinite_kernels
from mfoc.analysis.kernel.lazy import Laziness as Laziness
from mfoc.analysis.kernel.lazy import laziness as laziness
from mfoc.analysis.kernel.ntk_operator import NTKOperator as NTKOperator
from mfoc.analysis.kernel.regression import KernelPredictor as KernelPredictor
from mfoc.analysis.kernel.width import WidthDrift as WidthDrift
from mfoc.analysis.kernel.width import drift_against_width as drift_against_width
