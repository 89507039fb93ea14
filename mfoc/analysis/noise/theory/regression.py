"""SGD on linear regression: the expected loss at each step, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from mfoc.analysis.noise.theory.quantities import as_matrices, check_semidefinite
from mfoc.checks import check_integer, check_non_negative, check_positive


def linear_regression_excess_risk(
    hessian: float | Tensor,
    lr: float,
    batch_size: int,
    noise_variance: float,
    second_moment: float | Tensor,
    steps: int,
) -> Tensor:
    """The expected excess risk of SGD on linear regression with Gaussian inputs, fresh samples at each step.

    Inputs are x ~ N(0, H), labels y = <w*, x> + s e with e standard normal, and the loss is (<w, x> - y)^2 / 2 on
    batches of B. The second moment M_k = E (w_k - w*)(w_k - w*)' obeys, by the fourth moments of Gaussians (Isserlis),

        M' = (I - eta H) M (I - eta H) + eta^2 / B (H M H + tr(H M) H + s^2 H),

    and the excess risk is tr(H M_k) / 2. In the basis of H's eigenvectors the diagonal of M moves by itself,

        m_i' = ((1 - eta h_i)^2 + eta^2 h_i^2 / B) m_i + eta^2 / B h_i (sum_j h_j m_j + s^2),

    so that a step takes d operations. Where it diverges, so does SGD in mean square.

    Args:
        hessian: H, covariance of the inputs, symmetric positive semidefinite ``[d, d]``, or a number.
        lr: learning rate eta.
        batch_size: B.
        noise_variance: s^2, variance of the labels given the input.
        second_moment: M_0 ``[d, d]``, symmetric positive semidefinite: (w_0 - w*)(w_0 - w*)' for a known start. A
            number beside a number.
        steps: how many are taken.

    Returns:
        The excess risk before each step and after the last one ``[steps + 1]``.

    Raises:
        InvalidType: neither numbers nor floating-point tensors.
        InvalidValue: lr <= 0, a negative variance, no step, matrices that differ in kind or are not symmetric positive
            semidefinite.
    """
    check_positive(lr=lr)
    check_integer(1, batch_size=batch_size, steps=steps)
    check_non_negative(noise_variance=noise_variance)
    H, M = as_matrices(hessian=hessian, second_moment=second_moment)
    h, V = torch.linalg.eigh(H)
    check_semidefinite(h, "hessian")
    check_semidefinite(torch.linalg.eigvalsh(M), "second_moment")
    m = ((M @ V) * V).sum(0).clamp(min=0)
    h, m = h[h > 0], m[h > 0]  # the others add nothing: not even the 0 * inf of a run that diverges
    kept, spread = (1 - lr * h).square() + lr**2 / batch_size * h.square(), lr**2 / batch_size * h
    doubled = [h @ m]
    for _ in range(steps):
        m = torch.addcmul(spread * (doubled[-1] + noise_variance), kept, m)
        doubled.append(h @ m)
    return torch.stack(doubled) / 2
