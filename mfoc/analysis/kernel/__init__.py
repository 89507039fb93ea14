"""Kernels of networks: in the limit of infinite width, and of the network at hand (Jacot, Gabriel & Hongler 2018)."""

from mfoc.analysis.kernel.empirical import empirical_ntk as empirical_ntk
from mfoc.analysis.kernel.fitted import FittedKernel as FittedKernel
from mfoc.analysis.kernel.fitted import Prediction as Prediction
from mfoc.analysis.kernel.infinite import InfiniteKernels as InfiniteKernels
from mfoc.analysis.kernel.infinite import infinite_kernels as infinite_kernels
from mfoc.analysis.kernel.operator import NTKOperator as NTKOperator
from mfoc.analysis.kernel.regression import KernelPredictor as KernelPredictor
