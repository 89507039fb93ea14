"""Bounds on the information of a noisy activity, from pairwise distances.

With noise N(0, s I) on the activity, the law of T is a mixture of Gaussians, one for each input, whose entropy has no
closed form. Kolchinsky & Tracey (2017, arXiv:1706.02419) bound it, for components of weights c_i:

    H(T) - H(T|X)  between  -sum_i c_i ln sum_j c_j exp(-D(i, j)),   D the Bhattacharyya distance |t_i - t_j|^2 / (8 s)
                       and  the same with                            D the Kullback-Leibler one, |t_i - t_j|^2 / (2 s)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc.analysis.information.bounds import Bounds, checked_activity, checked_labels, entropy
from mfoc.checks import check_positive

_PAIRS = 2**22  # distances that are held at a time


@dataclass(frozen=True)
class KDE:
    """Bounds on the information of the activity with Gaussian noise added (Kolchinsky & Tracey 2017).

    The inputs are N equally likely ones: I(X;T) is at most ln N, which both bounds reach where the noise tells all
    inputs apart, and approaches that of the law which the inputs were drawn from only while it stays well below. In a
    network that adds such noise the bounds are of the network; in one without they are of the noise, too, since
    without any I(X;T) is infinite (or ln N): a layer that is scaled up seems to know more.

    Attributes:
        noise: the variance s of each unit's noise.

    Raises:
        InvalidType, InvalidValue: no positive finite number.
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        check_positive(noise=self.noise)

    @property
    def caveat(self) -> str:
        """What the numbers are of."""
        return (
            f"of the activity with noise of variance {self.noise:g} added: without noise I(X;T) is infinite or constant"
        )

    def about_input(self, activity: Tensor) -> Bounds:
        """Bounds on I(X;T) of activities ``[N, k]`` with the noise, at most ln N. All N^2 distances are evaluated.

        Raises:
            InvalidType, InvalidValue: no finite activity of two samples or more.
        """
        rows = checked_activity(activity)
        return Bounds(*self._spreads(rows))

    def about_labels(self, activity: Tensor, labels: Tensor) -> Bounds:
        """Bounds on I(T;Y) = H(T) - H(T|Y) of activities ``[N, k]`` with the noise and classes ``[N]``.

        Each entropy has its bounds, so that these lie further apart than those of I(X;T); they are cut at 0, at H(Y)
        and at the upper bound on I(X;T) (the data processing inequality).

        Raises:
            InvalidType, InvalidValue: no finite activity of two samples or more, no class for each.
        """
        rows = checked_activity(activity)
        classes = checked_labels(labels, len(rows)).to(rows.device)
        whole = self.about_input(rows)
        low, high = whole.lower, whole.upper
        for members in (rows[classes == c] for c in range(int(classes.max()) + 1)):
            share, (least, most) = len(members) / len(rows), self._spreads(members)
            low -= share * most
            high -= share * least
        upper = max(0.0, min(high, entropy(classes), whole.upper))
        return Bounds(min(max(0.0, low), upper), upper)

    def _spreads(self, rows: Tensor) -> tuple[float, float]:
        """-mean_i ln mean_j exp(-D(i, j)) for both distances D, from blocks of rows."""
        totals = [0.0, 0.0]
        scale = max(math.sqrt(self.noise), torch.finfo(rows.dtype).tiny)  # below, it would be rounded to 0
        for block in torch.split(rows, max(1, _PAIRS // len(rows))):
            # As sums of squared differences: from products, those between near neighbours would be lost to rounding.
            apart = -(torch.cdist(block, rows, compute_mode="donot_use_mm_for_euclid_dist") / scale).square()
            for which, factor in enumerate((8, 2)):
                totals[which] += float((math.log(len(rows)) - (apart / factor).logsumexp(1)).cpu().double().sum())
        least, most = (max(0.0, total / len(rows)) for total in totals)
        return least, most
