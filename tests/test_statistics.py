"""Student's t distribution, against scipy."""

import pytest
from scipy.stats import t as student

from mfoc import InvalidType, InvalidValue
from mfoc.statistics import student_t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 19, 30, 99, 1000, 4001])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(freedom: int, confidence: float) -> None:
    assert student_t_quantile(confidence, freedom) == pytest.approx(student.ppf(0.5 + confidence / 2, freedom))


def test_what_is_no_level_or_no_freedom_is_refused() -> None:
    with pytest.raises(InvalidValue, match="confidence"):
        student_t_quantile(1.0, 3)
    with pytest.raises(InvalidValue, match="freedom"):
        student_t_quantile(0.95, 0)
    with pytest.raises(InvalidType, match="freedom"):
        student_t_quantile(0.95, 2.5)  # type: ignore[arg-type]
