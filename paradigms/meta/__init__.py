"""Meta-learning as control over a law of tasks.

formulation = maml(net, F.mse_loss, sinusoids(), inner_steps=1, inner_lr=0.01)
solution = formulation.solve(mfoc.Gradient(partial(torch.optim.Adam, lr=1e-3)), steps=15000)
print(evaluate(formulation, solution, sinusoids(seed=1), batches=24))
net_of_a_task = adapt(formulation, solution, (x, y))
"""

from mfoc import deprecation
from paradigms.meta.algorithms import Coordinatewise, anil, learned_update, maml, meta_sgd, reptile
from paradigms.meta.classification import few_shot, from_taskset
from paradigms.meta.evaluation import Adaptation, adapt, evaluate
from paradigms.meta.formulations import MetaFormulation
from paradigms.meta.implicit import imaml, residuals
from paradigms.meta.interop import Learner, from_learn2learn, to_learn2learn
from paradigms.meta.task_laws import sinusoids, tasks

__all__ = [
    "Adaptation",
    "Coordinatewise",
    "Learner",
    "MetaFormulation",
    "adapt",
    "anil",
    "evaluate",
    "few_shot",
    "from_learn2learn",
    "from_taskset",
    "imaml",
    "learned_update",
    "maml",
    "meta_sgd",
    "reptile",
    "residuals",
    "sinusoids",
    "tasks",
    "to_learn2learn",
]

__getattr__ = deprecation.aliases("paradigms.meta")
