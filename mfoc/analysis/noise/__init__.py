"""The noise of stochastic gradients: what it is, how large batches should be, and whether its SDE holds."""

from mfoc.analysis.noise.covariance import Alignment as Alignment
from mfoc.analysis.noise.covariance import GradientNoise as GradientNoise
from mfoc.analysis.noise.covariance import gradient_noise as gradient_noise
from mfoc.analysis.noise.scales import NoiseScale as NoiseScale
from mfoc.analysis.noise.scales import NoiseScales as NoiseScales
from mfoc.analysis.noise.scales import Scale as Scale
from mfoc.analysis.noise.scales import noise_scale as noise_scale
from mfoc.analysis.noise.sde import ValidSDE as ValidSDE
from mfoc.analysis.noise.sde import compare_svag as compare_svag
from mfoc.analysis.noise.sde import svag_training as svag_training
from mfoc.analysis.noise.sde import svag_weights as svag_weights
from mfoc.analysis.noise.sde import valid_sde as valid_sde
from mfoc.analysis.noise.spectrum import Sharpness as Sharpness
from mfoc.analysis.noise.spectrum import sharpness as sharpness
