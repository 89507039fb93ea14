"""The noise of stochastic gradients: what theory says of where SGD stays, how fast it leaves, and how to anneal it."""

from mfoc.analysis.noise.annealing import Annealing as Annealing
from mfoc.analysis.noise.annealing import annealing_control as annealing_control
from mfoc.analysis.noise.annealing import momentum_control as momentum_control
from mfoc.analysis.noise.annealing import optimal_annealing as optimal_annealing
from mfoc.analysis.noise.escape import DoubleWell as DoubleWell
from mfoc.analysis.noise.escape import Escape as Escape
from mfoc.analysis.noise.escape import FlatSharp as FlatSharp
from mfoc.analysis.noise.escape import escape_time as escape_time
from mfoc.analysis.noise.escape import flat_against_sharp as flat_against_sharp
from mfoc.analysis.noise.escape import kramers_time as kramers_time
from mfoc.analysis.noise.first_passage import mean_first_passage_time as mean_first_passage_time
from mfoc.analysis.noise.modified import ModifiedEquation as ModifiedEquation
from mfoc.analysis.noise.modified import modified_equation as modified_equation
from mfoc.analysis.noise.modified_problem import modified_equation_of as modified_equation_of
from mfoc.analysis.noise.regression import linear_regression_excess_risk as linear_regression_excess_risk
from mfoc.analysis.noise.stationary import momentum_stationary_variance as momentum_stationary_variance
from mfoc.analysis.noise.stationary import ou_stationary_covariance as ou_stationary_covariance
from mfoc.analysis.noise.stationary import sgd_stationary_covariance as sgd_stationary_covariance
from mfoc.analysis.noise.stationary import stationary_density as stationary_density
