"""One process against several: a table of everything that is solved, which ``pytest -s`` prints.

Excluded are ``torch.optim.LBFGS`` on minibatches and adaptive ``EMSA``, which compare values that are equal but for
rounding.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mfoc
import paradigms
from mfoc import distributed, law
from mfoc.populations.whole import copied, whole
from mfoc.tree import leaves
from tests.problems import D, normal
from tests.ranks import on_ranks
from tests.ranks_rows import ROWS

RANKS = (2, 3)
DIGITS = 1e-12


def everything() -> dict[str, Any]:
    """What each row returns here; the text of its error where it fails."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, row in ROWS.items():
        try:
            found[name] = row()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def gap(found: Any, expected: Any) -> float:
    """The largest difference of two trees, each tensor's as a share of its largest number; infinite if unlike."""
    pairs = [[leaf for leaf in leaves(part) if leaf is not None] for part in (found, expected)]
    if len(pairs[0]) != len(pairs[1]) or isinstance(found, str) or isinstance(expected, str):
        return math.inf
    worst = 0.0
    for one, other in zip(*pairs, strict=True):
        a, b = (torch.as_tensor(leaf, dtype=D) for leaf in (one, other))
        if a.shape != b.shape:
            return math.inf
        apart = (a - b).abs()[~((a == b) | (a.isnan() & b.isnan()))]
        if apart.numel():
            share = float(apart.max() / b.abs().max())
            worst = max(worst, share if share == share else math.inf)
    return worst


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return everything()


@pytest.fixture(scope="module", params=RANKS)
def several(request: Any, tmp_path_factory: Any) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp(f"ranks{request.param}")
    return [each[0] for each in on_ranks(path, everything, ranks=request.param)]


@pytest.mark.slow
def test_several_processes_equal_one(several, alone):
    lines, failed = [], []
    for name, expected in alone.items():
        share, apart = gap(several[0][name], expected), max(gap(other[name], several[0][name]) for other in several[1:])
        kept = share <= DIGITS and apart == 0
        lines.append(f"{name:42} {share:9.1e} {apart:9.1e}  {'equal' if kept else 'NOT EQUAL'}")
        if not kept:
            text = [str(part) for part in (expected, several[0][name]) if isinstance(part, str)]
            failed.append(" ".join([lines[-1], *text]))
    head = f"{'one process against ' + str(len(several)):42} {'largest':>9} {'apart':>9}"
    largest = max(gap(several[0][name], expected) for name, expected in alone.items())
    print("\n" + "\n".join([head, *lines, f"{len(lines)} rows, largest difference {largest:.1e}"]))
    assert not failed, "\n".join(failed)


@pytest.mark.slow
def test_rows_do_something(alone):
    """A row that failed, or that moved nothing, would be equal everywhere."""
    for name, found in alone.items():
        assert not isinstance(found, str), f"{name}: {found}"
        numbers = [torch.as_tensor(leaf, dtype=D) for leaf in leaves(found) if leaf is not None]
        assert any(bool((number != 0).any()) for number in numbers), name
        if isinstance(found, dict) and "residual" in found:
            begun = found["residual"][1]
            assert begun > 0, name


def concretes(module: Any, *methods: str) -> list[str]:
    """Names of the public classes that have these methods and are no protocols."""
    made = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, kind in made.items()
        if dataclasses.is_dataclass(kind) and all(hasattr(kind, method) for method in methods)
    ]


def returning(module: Any, *kinds: str) -> list[str]:
    """Names of the public functions that say they return one of these."""
    functions = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, made in functions.items()
        if inspect.isfunction(made) and made.__annotations__.get("return") in kinds
    ]


def test_every_solver_maximiser_and_paradigm_has_a_row():
    from mfoc import maximisers, solvers
    from paradigms import adversarial, bayesian, meta

    wanted = [*solvers.__all__, *concretes(maximisers, "maximise"), "Picard", "Box", "Simplex", "L1", "CSGD", "CMSGD"]
    wanted += [*concretes(adversarial, "maximise"), "TRADES", "certify", "certify_module", "price_of_anarchy"]
    wanted += concretes(bayesian, "init", "step") + concretes(bayesian, "direction") + concretes(bayesian, "move")
    wanted += [name for name in concretes(bayesian, "start", "draw", "step") if name != "Stein"]  # svgd makes it
    wanted += returning(bayesian, "Formulation", "Sampler", "Follmer") + returning(meta, "MetaFormulation")
    assert {"MALA", "svgd", "maml", "IMQ", "AdamRule", "YOPO", "CrossEntropy"} <= {*wanted}
    names = " ".join(ROWS).lower()
    skipped = {"from_learn2learn"}  # a reading of another library's object as one of these
    assert [name for name in wanted if name.lower() not in names and name not in skipped] == []
    assert {"adversarial", "bayesian", "meta"} <= {*paradigms.available()}, "and rows for a new one"


# ---- what it rests on


def mechanisms() -> dict[str, Any]:
    """On three ranks: a batch of two, one of four, and what the law says of them."""
    found: dict[str, Any] = {}
    rank = distributed.rank()
    for size in (2, 4):
        x = normal(size, 2)
        cloud = mfoc.population(lambda n, x=x: mfoc.Particles(x, {"even": torch.arange(len(x)) % 2 == 0}))(0)
        mine = cloud.state.clone().requires_grad_()
        near = law.kernel_mean(lambda a, b: (-(a - b).square().sum(2)).exp(), mine)
        spread = law.jointly(lambda y: y * torch.cdist(y, y).flatten().median(), mine)
        (slope,) = torch.autograd.grad((mine.prod(1) * law.mean(mine.square()).sum()).sum(), mine)
        joined = whole(cloud)
        found[f"{size}"] = {
            "share": len(cloud), "copied": copied(cloud), "count": law.count(mine), "mean": law.mean(mine).detach(),
            "covariance": law.covariance(mine).detach(), "near": near.detach(), "spread": spread.detach(),
            "slope": slope, "index": cloud.indices(), "whole": joined.state, "even": joined.data["even"],
        }  # fmt: skip
    with distributed.alone():
        found["alone"] = [distributed.world_size(), distributed.rank(), distributed.is_main() == (rank == 0)]
        found["own mean"] = law.mean(torch.full((2,), float(rank)))
    found["ranks"] = distributed.world_size()
    return found


@pytest.mark.slow
def test_laws_over_ranks_are_those_of_the_batch(tmp_path):
    expected = mechanisms()
    for rank, (found,) in enumerate(on_ranks(tmp_path, mechanisms, ranks=3)):
        assert found["ranks"] == 3
        assert found["alone"] == [1, 0, True]
        assert float(found["own mean"]) == rank
        for size, copies in (("2", True), ("4", False)):
            here, there = found[size], expected[size]
            assert here["copied"] is copies
            assert here["share"] == (2 if copies else len(range(rank, 4, 3)))
            assert here["count"] == there["count"] == int(size)
            assert torch.equal(here["whole"], there["whole"])
            assert torch.equal(here["even"], there["even"])
            for name in ("mean", "covariance"):
                torch.testing.assert_close(here[name], there[name], rtol=1e-14, atol=1e-15)
            for name in ("near", "spread", "slope"):
                torch.testing.assert_close(here[name], there[name][here["index"]], rtol=1e-14, atol=1e-15)


def test_without_ranks_a_cloud_is_whole():
    cloud = mfoc.Particles(normal(3, 2))
    assert whole(cloud) is cloud
    assert not copied(cloud)
    seen: list[Tensor] = []

    def noted(y: Tensor) -> Tensor:
        seen.append(y)
        return 2 * y

    assert torch.equal(law.jointly(noted, cloud.state), 2 * cloud.state)
    assert seen[0] is cloud.state
    with pytest.raises(mfoc.InvalidType, match="x is a list"):
        law.jointly(noted, [1.0])  # type: ignore[arg-type]
