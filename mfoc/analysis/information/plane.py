"""The information plane: what each layer of a network tells of the input, and of the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mfoc.analysis.information.activities import activities
from mfoc.analysis.information.bounds import Bounds, Estimator, checked_labels, entropy
from mfoc.analysis.information.drawing import draw
from mfoc.analysis.information.kde import KDE
from mfoc.checks import check_instance, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.printing import by_identity, html_table, table

_SATURATED = 0.95  # the share of ln N from which the samples are counted, not the layer


@dataclass(frozen=True)
class LayerInformation:
    """What one layer tells, in nats.

    Attributes:
        name: the path of its module, or "output".
        units: numbers in its activity for one input.
        about_input: I(X;T).
        about_labels: I(T;Y).
        saturated: whether I(X;T) is within 5 % of ln N, the most that N samples can show. More samples would show more.
    """

    name: str
    units: int
    about_input: Bounds
    about_labels: Bounds
    saturated: bool


@by_identity
@dataclass(frozen=True, eq=False)
class InformationPlane:
    """Where the layers of a network lie between the input and the labels; in nats.

    Attributes:
        layers: in the order they run.
        estimator: by what the information was estimated.
        samples: the number of inputs N.
        label_entropy: H(Y), the most that a layer can tell of the labels.
    """

    layers: tuple[LayerInformation, ...]
    estimator: Estimator
    samples: int
    label_entropy: float

    @property
    def verdict(self) -> str:
        """What may be read off, in a sentence."""
        saturated = [layer.name for layer in self.layers if layer.saturated]
        full = ""
        if saturated:
            full = (
                f"; {len(saturated)} of {len(self.layers)} layers show as much of the input as {self.samples} samples "
                f"can (ln N = {math.log(self.samples):.3g}), and may tell more"
            )
        return f"{self.estimator.caveat}{full}"

    def __str__(self) -> str:
        head = f"{self.samples} samples, H(Y) = {self.label_entropy:.3g} nats, {self.estimator!r}"
        return "\n".join([head, table(_HEADER, self._rows()), self.verdict])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, self._rows(), caption=self.verdict)

    def _rows(self) -> list[list[str]]:
        return [
            [layer.name, str(layer.units), str(layer.about_input), str(layer.about_labels), "*" * layer.saturated]
            for layer in self.layers
        ]

    def plot(self, *later: InformationPlane, title: str | None = None) -> Any:
        """The plane, with the paths of the layers through the planes of later moments of a training.

        A marker is the middle of the bounds, a cross (at the last moment) spans them. An open marker is where a path
        begins.

        Args:
            *later: planes of the same network as it was trained, in order.
            title: above the figure; the estimator when None.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            InvalidType: something else than planes.
            InvalidValue: planes of other layers or another number of samples.
        """
        for place, other in enumerate(later):
            if not isinstance(other, InformationPlane):
                raise InvalidType(f"later[{place}] is {kind_of(other)}; expected what information_plane returned")
            names, own = [layer.name for layer in other.layers], [layer.name for layer in self.layers]
            if names != own or other.samples != self.samples:
                raise InvalidValue(
                    f"later[{place}] is of layers {names} on {other.samples} samples; expected those of the first, "
                    f"{own} on {self.samples}"
                )
        paths = {
            layer.name: [(plane.layers[k].about_input, plane.layers[k].about_labels) for plane in (self, *later)]
            for k, layer in enumerate(self.layers)
        }
        return draw(paths, math.log(self.samples), self.label_entropy, title or repr(self.estimator))


_HEADER = ("layer", "units", "I(X;T) [nats]", "I(T;Y) [nats]", "full")


def information_plane(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    estimator: Estimator = KDE(),  # noqa: B008
    layers: Sequence[str] | None = None,
) -> InformationPlane:
    """What each layer of a network tells of its input and of the labels (Shwartz-Ziv & Tishby 2017, arXiv:1703.00810).

    In a deterministic network I(X;T) is infinite for a continuous input, and a constant for finitely many inputs: what
    is estimated is a property of the bins, or of the noise that is added (Saxe et al. 2018, "On the information
    bottleneck theory of deep learning"). Whether a training "compresses" depends on them: try several.

    Args:
        net: any module that takes one tensor; a private copy is run, in the network's own mode.
        x: inputs ``[N, ...]``, taken as N equally likely ones.
        y: their classes ``[N]``, whole numbers.
        estimator: ``KDE(noise)``, whose pairs take N^2 time, or ``Binned(bins)``.
        layers: names of submodules; when None all activation functions that are modules (without any, all modules that
            hold no others), and the output.

    Returns:
        A table of the layers. Take one at several moments of a training, and draw ``planes[0].plot(*planes[1:])``.

    Raises:
        InvalidType: no module, no tensors, continuous labels, no estimator.
        InvalidValue: fewer than two inputs, labels that are not one for each, a network that fails on them or is
            random, unknown layers, activity that is not finite.
    """
    check_instance(Estimator, "an estimator such as KDE(0.1) or Binned(30)", estimator=estimator)
    seen = activities(net, x, layers)
    label_entropy = entropy(checked_labels(y, len(x)))
    found = []
    for name, activity in seen.items():
        try:
            about_input = estimator.about_input(activity)
            about_labels = estimator.about_labels(activity, y)
        except (InvalidType, InvalidValue) as error:
            raise type(error)(f"layer {name!r}: {error}") from error
        full = about_input.lower >= _SATURATED * math.log(len(x))
        found.append(LayerInformation(name, activity[0].numel(), about_input, about_labels, full))
    return InformationPlane(tuple(found), estimator, len(x), label_entropy)
