"""Adversarial training as a differential game, with torchattacks as adversary and judge.

formulation = game(net, loss, data, epsilon=0.1)
solution = formulation.solve(mfoc.Minimax(YOPO(5, 3), partial(torch.optim.Adam, lr=1e-3)), steps=500)
robust = formulation.readout(solution)
print(evaluate(robust, test, epsilon=0.1))
"""

from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from paradigms.adversarial.certificate import GameCertificate, certify
from paradigms.adversarial.evaluation import Robustness, evaluate, wilson
from paradigms.adversarial.games import TRADES, GameFormulation, game
from paradigms.adversarial.interop import FromTorchattacks, as_attack
from paradigms.adversarial.plots import accuracy_curves

__all__ = [
    "FGSM",
    "PGD",
    "TRADES",
    "YOPO",
    "Free",
    "FromTorchattacks",
    "GameCertificate",
    "GameFormulation",
    "Robustness",
    "accuracy_curves",
    "as_attack",
    "certify",
    "evaluate",
    "game",
    "wilson",
]
