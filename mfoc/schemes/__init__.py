"""Continuous-time problems, discretised: dx = b(t, x, u, z) dt + sigma dW, cost = integral L dt + Phi.

A scheme advances one stage of length h from time s with the control held constant:
``scheme(drift, s, x, u, z, h) -> x_next``. Orders (global error in h): euler 1, heun 2, rk4 and rk38 4;
Butcher, "Numerical Methods for Ordinary Differential Equations" (2016), ch. 3. ``dopri5`` takes as many steps within a
stage as its tolerance asks for. The running cost is integrated by the same scheme, as one more component of the state,
so the objective has the scheme's order too.
"""

from mfoc.schemes.adaptive import dopri5
from mfoc.schemes.discretised import continuous
from mfoc.schemes.free_time import FreeTime
from mfoc.schemes.noise import brownian, euler_maruyama
from mfoc.schemes.runge_kutta import Drift, Scheme, euler, heun, rk4, rk38

__all__ = [
    "Drift", "FreeTime", "Scheme", "brownian", "continuous", "dopri5", "euler", "euler_maruyama", "heun", "rk4",
    "rk38",
]  # fmt: skip
