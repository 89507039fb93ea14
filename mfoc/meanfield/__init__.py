"""Mean-field games beside mean-field control: one object, with the law frozen or moved."""

from mfoc.meanfield.density import DensityProblem, DensitySolution
from mfoc.meanfield.equilibrium import Equilibrium, best_response
from mfoc.meanfield.measures import Exploitability, PriceOfAnarchy, exploitability, price_of_anarchy
from mfoc.meanfield.picard import Picard

__all__ = [
    "DensityProblem",
    "DensitySolution",
    "Equilibrium",
    "Exploitability",
    "Picard",
    "PriceOfAnarchy",
    "best_response",
    "exploitability",
    "price_of_anarchy",
]
