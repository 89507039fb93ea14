"""The noise of stochastic gradients: what theory says of where SGD stays, how fast it leaves, and how to anneal it."""

from mfoc.analysis.noise.annealing import Annealing as Annealing
from mfoc.analysis.noise.annealing import annealing_control as annealing_control
from mfoc.analysis.noise.annealing import momentum_control as momentum_control
from mfoc.analysis.noise.annealing import optimal_annealing as optimal_annealing
