"""Bayesian learning as control: variational laws, particle flows and stochastic-control samplers, in and out of Pyro.

formulation = variational(net, (x, y), likelihood="gaussian", samples=10)
solution = formulation.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2)), steps=2000)
posterior = formulation.readout(solution)
prediction = predict(posterior, x_test)
print(nll(prediction, y_test), rmse(prediction, y_test))
"""

from mfoc import deprecation
from paradigms.bayesian.density import LogDensity, log_density
from paradigms.bayesian.density.potential import Potential, to_potential
from paradigms.bayesian.laws.likelihoods import LogLikelihood, NegativeLogLikelihood
from paradigms.bayesian.laws.prediction import Ensemble, Prediction, ensemble
from paradigms.bayesian.metrics import Reliability, accuracy, ece, nll, reliability, rmse
from paradigms.bayesian.plots import band, calibration
from paradigms.bayesian.predictive import predict
from paradigms.bayesian.pyro.networks import as_model
from paradigms.bayesian.samplers.bridges import CrossEntropy, bridge_matching
from paradigms.bayesian.samplers.diffusion import PathProblem
from paradigms.bayesian.samplers.drifts import Drift, GaussianDrift
from paradigms.bayesian.samplers.follmer import Evidence, Follmer, follmer
from paradigms.bayesian.samplers.kernels import IMQ, RBF, PyroIMQ, PyroRBF, discrepancy
from paradigms.bayesian.samplers.langevin import MALA, SGLD, ULA, langevin
from paradigms.bayesian.samplers.runs import Draws, Sampler, sample
from paradigms.bayesian.samplers.svgd import AdaGradRule, AdamRule, PlainRule, Stein, svgd
from paradigms.bayesian.vi.inference import variational
from paradigms.bayesian.vi.posterior import NetworkPosterior

__all__ = [
    "IMQ", "MALA", "RBF", "SGLD", "ULA", "AdaGradRule", "AdamRule", "CrossEntropy", "Draws", "Drift", "Ensemble",
    "Evidence", "Follmer", "GaussianDrift", "LogDensity", "LogLikelihood", "NegativeLogLikelihood", "NetworkPosterior",
    "PathProblem", "PlainRule", "Potential", "Prediction", "PyroIMQ", "PyroRBF", "Reliability", "Sampler", "Stein",
    "accuracy", "as_model", "band", "bridge_matching", "calibration", "discrepancy", "ece", "ensemble", "follmer",
    "langevin", "log_density", "nll", "predict", "reliability", "rmse", "sample", "svgd", "to_potential", "variational",
]  # fmt: skip

__getattr__ = deprecation.aliases("paradigms.bayesian")
