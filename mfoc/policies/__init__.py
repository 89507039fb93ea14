"""Feedback controls u = pi(t, x; theta): a problem in u becomes a problem in the parameters of a policy.

    x_(t+1) = f_t(x_t, pi(t, x_t; theta), z),     J(theta) = E [ sum_t L_t(x_t, pi(t, x_t; theta), z) + Phi(x_T, z) ]

Three classes of control, which have different minima where there is noise or more than one start: open loop shared by
the cloud (what a ``Problem`` is by itself), one for each particle (``Problem.per_particle``), and feedback, here. A
policy may use the law of the population, u = pi(t, x, law), through ``mfoc.mean``. It sees no data z: the noise that is
still to come is not its to know.
"""

from mfoc.policies.modules import Policy, linear_policy
from mfoc.policies.problem import Feedback, feedback, policy_of

__all__ = ["Feedback", "Policy", "feedback", "linear_policy", "policy_of"]
