"""Figures of several networks, made without pyplot: each function returns a ``matplotlib.figure.Figure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mfoc import InvalidType
from mfoc.checks import check_instance
from paradigms.adversarial.drawing import draw_radii
from paradigms.adversarial.evaluation import Accuracy, Robustness, by_radius


def accuracy_curves(
    tables: Mapping[str, Robustness | Sequence[Robustness]], *, attack: str | None = None, title: str = ""
) -> Any:
    """Accuracy against the radius of the ball, a curve a network.

    Args:
        tables: network's name -> what ``evaluate(net, data, epsilon=...)`` returned, one table for each radius.
        attack: under which; the one that leaves the least right, at each radius, when None.
        title: of the figure.

    Raises:
        InvalidType: no tables, or something else.
        InvalidValue: tables of several norms or levels of confidence, or two at one radius; an attack that one lacks.
        MissingExtra: matplotlib is not installed.
    """
    if not isinstance(tables, Mapping) or not tables:
        raise InvalidType("tables: expected a dict, name of a network -> tables that evaluate(net, data, ...) returned")
    check_instance(str | None, "the name of an attack", attack=attack)
    check_instance(str, "a string", title=title)
    kept = {name: [found] if isinstance(found, Robustness) else found for name, found in tables.items()}
    if not all(isinstance(found, Sequence) and found for found in kept.values()):
        raise InvalidType("tables: expected for each network what evaluate(...) returned, or a list of it")
    curves = {name: _curve(by_radius(found), attack) for name, found in kept.items()}
    first = by_radius([table for found in kept.values() for table in found], repeated=True)[0]
    shown = title or ("The strongest of the attacks" if attack is None else f"Under {attack}")
    return draw_radii(curves, title=shown, norm=first.ball.norm, confidence=first.confidence)


def _curve(tables: Sequence[Robustness], attack: str | None) -> list[tuple[float, Accuracy]]:
    """Radius and accuracy, from the undisturbed one on."""
    found = [(0.0, tables[0].rows[0])]
    for table in tables:
        row = min(table.rows, key=lambda each: each.correct) if attack is None else table.under(attack)
        found.append((table.ball.epsilon, row))
    return found
