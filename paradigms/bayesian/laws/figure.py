"""The figure of a prediction: what can be drawn of it, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_instance, check_integer, check_tensor
from paradigms.bayesian.laws.drawing import Labels, draw_band, draw_classes, draw_places

if TYPE_CHECKING:
    from paradigms.bayesian.laws.prediction import Prediction


def of_prediction(prediction: Prediction, x: Tensor | None, data: Any, output: int, labels: Labels) -> Any:
    """What ``Prediction.plot`` draws; arguments and errors are its."""
    if not isinstance(prediction.mean, Tensor):
        raise InvalidType(f"prediction is of several outputs, and a figure is of one: {prediction!r}")
    if x is not None:
        check_tensor("the inputs of the prediction, [B] or [B, 1]", floating=False, x=x)
        if x.numel() != len(prediction.mean):
            raise InvalidValue(
                f"x has shape {tuple(x.shape)}; expected one number for each of {len(prediction.mean)} inputs"
            )
    return _of_classes(prediction, x, data, labels) if prediction.classes else _of_numbers(
        prediction, x, data, output, labels
    )  # fmt: skip


def _of_numbers(prediction: Prediction, x: Tensor | None, data: Any, output: int, labels: Labels) -> Any:
    mean = prediction.mean
    check_integer(0, max(mean.numel() // max(len(mean), 1) - 1, 0), output=output)

    def column(values: Tensor) -> Tensor:
        return values.detach().reshape(len(values), -1)[:, output].cpu().double()

    noisy = prediction.aleatoric is not None
    found = [column(mean), column(prediction.epistemic).sqrt(), column(prediction.total).sqrt() if noisy else None]
    if x is None:
        truth = None if data is None else _truth(data, mean, output)
        return draw_places(found[0], found[1], found[2], truth, labels)  # type: ignore[arg-type]
    points = None if data is None else _points(data, output)
    at, order = _ascending(x)
    sorted_parts = [None if part is None else part[order] for part in found]
    return draw_band(at, sorted_parts[0], sorted_parts[1], sorted_parts[2], points, labels)  # type: ignore[arg-type]


def _of_classes(prediction: Prediction, x: Tensor | None, data: Any, labels: Labels) -> Any:
    if data is not None:
        raise InvalidValue("data is given and the prediction is of classes; expected none: reliability(prediction, y)")
    aleatoric = prediction.aleatoric if prediction.aleatoric is not None else prediction.epistemic * 0
    parts = [part.detach().cpu().double() for part in (aleatoric, prediction.epistemic)]
    probabilities = prediction.mean.detach().cpu().double()
    if x is None:
        return draw_classes(None, probabilities, parts, labels)
    at, order = _ascending(x)
    return draw_classes(at, probabilities[order], [part[order] for part in parts], labels)


def _ascending(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs in ascending order, and that order."""
    at: tuple[Tensor, Tensor] = x.detach().reshape(-1).cpu().sort()
    return at


def _truth(data: Any, mean: Tensor, output: int) -> Tensor:
    """Observations at the inputs of the prediction ``[B]``."""
    check_tensor("observations y at the inputs of the prediction; a pair (x, y) with x", floating=False, data=data)
    if data.numel() != mean.numel():
        raise InvalidValue(f"data has shape {tuple(data.shape)}; expected one observation for each {tuple(mean.shape)}")
    found: Tensor = data.detach().reshape(len(mean), -1)[:, output].cpu().double()
    return found


def _points(data: Any, output: int) -> tuple[Tensor, Tensor]:
    """Observations of one variable and of one output, ``[n]`` each."""
    check_instance(tuple | list, "observations, a pair (x, y) of tensors", data=data)
    if len(data) != 2:
        raise InvalidValue(f"data has {len(data)} parts; expected a pair (x, y)")
    x, y = data
    check_tensor("observations (x, y), tensors [n] or [n, k]", floating=False, **{"data[0]": x, "data[1]": y})
    if not y.dim() or x.numel() != len(y) or y.numel() <= output * len(y):
        raise InvalidValue(f"data has x {tuple(x.shape)} and y {tuple(y.shape)}; expected one x for each y, [n]")
    return x.detach().cpu().reshape(-1), y.detach().cpu().reshape(len(y), -1)[:, output]
