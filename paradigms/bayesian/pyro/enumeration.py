"""Discrete latents of Pyro models, summed out as ``pyro.infer.TraceEnum_ELBO`` does.

A latent marked ``infer={"enumerate": "parallel"}`` (``pyro.infer.config_enumerate`` marks all) runs through its values
along an axis of its own, left of those of the plates, and the axis is summed out of the joint density of the trace by
message passing (Obermeyer et al. 2019, arXiv:1902.03210).
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidValue, require

Site = Mapping[str, Any]


def is_summed(site: Site) -> bool:
    """Whether a site is a discrete latent that is marked to be summed out."""
    if site["type"] != "sample" or site["is_observed"] or not getattr(site["fn"], "has_enumerate_support", False):
        return False
    return site["infer"].get("enumerate") == "parallel" and site["infer"].get("num_samples") is None


def latents(trace: Any) -> dict[str, Any]:
    """The latent sites of a trace that are inferred: all but those that are summed out."""
    return {name: site for name, site in trace.iter_stochastic_nodes() if not is_summed(site)}


def summed(trace: Any) -> dict[str, Any]:
    """The latent sites of a trace that are summed out."""
    return {name: site for name, site in trace.iter_stochastic_nodes() if is_summed(site)}


def nesting_of(trace: Any) -> int | None:
    """How deep the plates of a model with latents to be summed out are nested; None where there are no such latents."""
    if not summed(trace):
        return None
    frames = [f for site in trace.nodes.values() if site["type"] == "sample" for f in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def refusal(name: str, law: Any) -> str:
    """What is said of a discrete latent that is not summed out."""
    what = f"the latent {name!r} is discrete ({type(law).__name__}) and has no gradient"
    if not getattr(law, "has_enumerate_support", False):
        return f"{what}, and its values cannot be listed to sum it out: integrate it by hand, or use a law that is not"
    return (
        f'{what}: sum it out, with infer={{"enumerate": "parallel"}} at its site, or with '
        "pyro.infer.config_enumerate(model), and it is marginalised exactly"
    )


def check(call: Callable[[Callable[..., Any]], Any], model: Callable[..., Any], trace: Any, nesting: int) -> None:
    """Refuses a model that Pyro cannot enumerate, of which this is a trace; ``call`` runs a function on its arguments.

    Pyro's own checks are run: of shapes, of what depends on what, and of scales.
    """
    for name, site in latents(trace).items():
        if site["infer"].get("enumerate") == "parallel":
            raise InvalidValue(
                f"the latent {name!r} ({type(site['fn']).__name__}) is marked to be enumerated, and it is continuous; "
                "leave the mark out"
            )
    pyro = require("pyro", "bayes")
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)

    def nothing(*args: Any, **kwargs: Any) -> None:
        """A guide of no latent: the model draws its own."""

    try:
        with pyro.validation_enabled(True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found vars in model but not guide")
            warnings.filterwarnings("ignore", "Encountered (NaN|\\+?inf)")
            call(functools.partial(elbo.loss, model, nothing))
    except Exception as error:  # whatever the user's model, or Pyro of it, raises
        raise InvalidValue(f"the discrete latents of the model cannot be summed out: {error}") from error


def check_batch(whole: Any, part: Any, *, instead: str) -> None:
    """Refuses discrete latents that all observations share: the log of a sum over them is no sum over observations."""
    sizes = {frame.name: frame.size for site in whole.nodes.values() for frame in site.get("cond_indep_stack", ())}
    for name, site in summed(part).items():
        if all(frame.size == sizes.get(frame.name) for frame in site["cond_indep_stack"]):
            raise InvalidValue(
                f"the discrete latent {name!r} is one for all observations, so that a batch, with it summed out, does "
                f"not stand for all of them; {instead}"
            )


def enumerating(nesting: int | None) -> AbstractContextManager[Any]:
    """Within it the latents to be summed out run through their values; nothing where there are none."""
    if nesting is None:
        return nullcontext()
    messenger: AbstractContextManager[Any] = _messenger()(-1 - nesting)
    return messenger


@functools.cache
def _messenger() -> Any:
    """Pyro's messenger, which looks at the shapes of values and asks for their data, which no ``vmap`` gives."""

    class Enumerating(require("pyro", "bayes").poutine.enum_messenger.EnumMessenger):  # type: ignore[misc]
        def _pyro_post_sample(self, msg: Any) -> None:
            value = msg["value"]
            shape = torch.empty(value.shape, device="meta") if isinstance(value, Tensor) else value
            super()._pyro_post_sample({**msg, "value": shape})

    return Enumerating


def marginal(trace: Any, inferred: Collection[str]) -> tuple[Tensor, Tensor]:
    """The log prior of the latents ``inferred``, and the log density of the observations given them.

    Both with the other latents of an enumerated trace, its log densities computed, summed out. As in
    ``TraceEnum_ELBO`` a mask is within the sum, and a scale outside of it.
    """
    trace.pack_tensors()
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    plates = set(trace.plate_to_symbol.values())
    hidden = [name for name, site in sites.items() if site["infer"].get("_enumerate_dim") is not None]
    axes = {axis for name in hidden for axis in _axes(sites[name]["packed"]["log_prob"])} - plates
    others = [name for name in sites if name not in hidden]
    moved = [name for name in others if not axes.isdisjoint(_axes(sites[name]["packed"]["log_prob"]))]
    plain = [sites[name] for name in others if name not in moved]
    zero = sites[next(iter(inferred))]["log_prob_sum"].new_zeros(())
    prior = sum((site["log_prob_sum"] for site in plain if not site["is_observed"]), start=zero)
    observed = sum((site["log_prob_sum"] for site in plain if site["is_observed"]), start=zero)
    both = zero + _contracted(trace, [sites[name] for name in moved + hidden], axes)
    # Without a latent that depends on them the probabilities of what is summed out add up to one.
    own = [name for name in moved if name in inferred]
    share = _contracted(trace, [sites[name] for name in own + hidden], axes) if own else zero
    return prior + share, observed + both - share


def _contracted(trace: Any, sites: list[Any], axes: set[str]) -> Any:
    """The log of the sum over the axes of the product of the densities of some sites."""
    ops, tensors = require("pyro", "bayes").ops, OrderedDict[frozenset[str], list[Tensor]]()
    sizes: dict[str, int] = {}
    for site in sites:
        plates = frozenset(trace.plate_to_symbol[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized)
        packed = site["packed"]
        log: Any = packed["unscaled_log_prob"]
        if site["infer"].get("_enumerate_dim") is None:  # what is summed over adds up to one, masked or not
            log = ops.packed.scale_and_mask(log, mask=packed["mask"])
        sizes.update(zip(_axes(log), log.shape, strict=True))
        tensors.setdefault(plates, []).append(log)
    tree = ops.contract.contract_tensor_tree(tensors, axes, ring=_ring()(dim_to_size=sizes))
    return sites[0]["scale"] * sum(term.sum() for terms in tree.values() for term in terms)


def _axes(packed: Any) -> str:
    """The names of the axes of a tensor of Pyro's packing."""
    axes: str = packed._pyro_dims  # noqa: SLF001  # Pyro has no other name for it
    return axes


@functools.cache
def _ring() -> Any:
    """Pyro's ring of log densities, with a logarithm that can be differentiated twice and vectorised."""

    class Ring(require("pyro", "bayes").ops.rings.LogRing):  # type: ignore[misc]
        _backend = "paradigms.bayesian.pyro.log_einsum"

    return Ring
