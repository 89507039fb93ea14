"""The guides of Pyro, read as laws of a model's latents, and whether they fit it."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidType, InvalidValue, require
from mfoc.checks import kind_of
from mfoc.seeding import seeded
from paradigms.bayesian.pyro import enumeration
from paradigms.bayesian.pyro.families import Family, family_of
from paradigms.bayesian.pyro.supports import same_support
from paradigms.bayesian.pyro.trace import Arguments, parameters, prototype, unconstrained

_KNOWN = (
    "AutoNormal",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoDelta",
    "AutoLaplaceApproximation",
)


@dataclass(frozen=True, eq=False)
class ReadGuide:
    """An AutoGuide read as a law of free latents ``[D]``, whose parameters are the control."""

    guide: Any  # its parameters made
    family: Family
    shapes: dict[str, torch.Size]  # latent name -> its shape among the free latents
    remake: Callable[[], Any]  # makes a guide of the same kind anew
    nesting: int | None = None  # of the plates of a model whose discrete latents are summed out

    def controls(self) -> dict[str, Tensor]:
        """The guide's unconstrained parameters, by their names in it."""
        return {name: value.detach().clone() for name, value in self.guide.named_parameters()}

    def solved(self, u: dict[str, Tensor]) -> Any:
        """A new guide of this class at other parameters."""
        guide = self.remake()
        own = dict(guide.named_parameters())
        if own.keys() != u.keys() or any(own[name].shape != u[name].shape for name in own):
            raise InvalidValue(f"the controls hold {sorted(u)}; the guide has {sorted(own)}: were they solved for it?")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(u[name])
        name_apart(guide)
        return guide


GaussianGuide = ReadGuide  # its name in version 0.1, when all were Gaussian


def guide_of(model: Callable[..., Any], guide: Any, arguments: Arguments) -> ReadGuide:
    """Reads one of the known guides: a class, a function of the model, an instance, or None: ``AutoNormal``.

    Of an instance the class, the settings and, once it is set up, the parameters are taken. Refuses latents that are
    not the model's, and a model that has parameters or supports that move.
    """
    guides = require("pyro", "bayes").infer.autoguide
    known = tuple(getattr(guides, name) for name in _KNOWN)
    guide = guides.AutoNormal if guide is None else guide
    given = guide if isinstance(guide, known) else None
    if given is None and not callable(guide):
        raise InvalidType(f"guide is {kind_of(guide)}; expected one of {', '.join(_KNOWN)}")
    trace = _fixed(model, arguments)
    if hidden := list(enumeration.summed(trace)):  # no guide has them
        model = require("pyro", "bayes").poutine.block(model, hide=hidden)
    make = guide if given is None else _again(given, trace, arguments)

    def remake() -> Any:
        try:
            made = make(model)
        except TypeError as error:
            raise InvalidType(
                f"guide is {guide!r} and cannot be made anew ({error}); pass a function model -> guide"
            ) from error
        if not isinstance(made, known):
            raise InvalidType(f"guide is {kind_of(made)}; expected one of {', '.join(_KNOWN)}")
        set_up(made, arguments)
        return made

    try:
        made = remake()
    except NotImplementedError as error:  # what Pyro says of supports it cannot unconstrain, and of sequential plates
        raise InvalidValue(f"the guide cannot be made for this model: {error}") from error
    if hidden and isinstance(made, guides.AutoLaplaceApproximation):
        raise InvalidValue(
            f"guide is an AutoLaplaceApproximation, and Pyro takes its curvature with {hidden} drawn, not summed out; "
            "use AutoMultivariateNormal, or AutoDelta for the point alone"
        )
    check_match(made.prototype_trace, trace)
    if given is None:
        _check_model(made, trace, arguments)
    elif given.prototype_trace is not None:  # an instance in use: start where it is
        _start_at(made, given)
    family, shapes = family_of(made, {name: value.shape for name, value in unconstrained(made.prototype_trace).items()})
    return ReadGuide(made, family, shapes, remake, enumeration.nesting_of(trace))


def _fixed(model: Callable[..., Any], arguments: Arguments) -> Any:
    """A trace of a model whose latents are the same in every run, and which has no parameters."""
    trace, other = (prototype(model, arguments, seed=seed) for seed in range(2))
    if params := parameters(trace):
        raise InvalidValue(
            f"the model has a parameter {min(params)!r} (pyro.param); give it a prior, or make it a constant"
        )
    if arguments.lengths and not trace.observation_nodes:
        raise InvalidValue(
            f"the model observes nothing at these data: all of {sorted(enumeration.latents(trace))} are "
            "latent; pass the observations, too (obs=y)"
        )
    latents, others = (enumeration.latents(one) for one in (trace, other))
    if latents.keys() != others.keys():
        raise InvalidValue(
            f"which latents the model has depends on their values ({sorted(latents.keys() ^ others.keys())}); a guide "
            "needs the same in every run"
        )
    for name, site in latents.items():
        if not same_support(site["fn"].support, others[name]["fn"].support):
            raise InvalidValue(
                f"the support of latent {name!r} depends on another latent, and the guides of Pyro have one that is "
                "fixed: draw it on a fixed support and transform it, as u ~ Uniform(0, 1), top * u; or use "
                "log_density(model, data), which takes it, with svgd, langevin or follmer"
            )
    return trace


def _again(given: Any, trace: Any, arguments: Arguments) -> Callable[..., Any]:
    """A function model -> guide that makes guides like a given one: its class, settings and starting point."""
    own = _check_model(given, trace, arguments)
    if given.prototype_trace is not None:
        check_match(given.prototype_trace, trace)
    own_settings = {"init_scale": "_init_scale", "rank": "rank"}
    settings: dict[str, Any] = {key: getattr(given, name) for key, name in own_settings.items() if hasattr(given, name)}
    if own is not None:
        values = {name: site["value"] for name, site in enumeration.latents(own).items()}
        settings["init_loc_fn"] = require("pyro", "bayes").infer.autoguide.init_to_value(values=values)
    if getattr(given, "create_plates", None) is not None:
        settings["create_plates"] = given.create_plates
    kind: Callable[..., Any] = type(given)
    taken = inspect.signature(kind).parameters  # a subclass may set some of these itself
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    return partial(kind, **{key: value for key, value in settings.items() if anything or key in taken})


def _check_model(guide: Any, trace: Any, arguments: Arguments) -> Any:
    """Refuses a guide made for another model; returns a trace of the guide's own."""
    try:
        own = guide.model
    except TypeError:  # one that was pickled has lost its model
        return None
    run = prototype(own, arguments)
    check_match(run, trace)
    theirs, ours = (_observations(one) for one in (run, trace))
    for name, what in theirs.items():
        if ours.get(name) != what:
            raise InvalidValue(
                f"the guide was made for another model: it observes {name!r} as {what}, and the model "
                f"{ours.get(name, sorted(ours))}"
            )
    return run


def _observations(trace: Any) -> dict[str, str]:
    """The observed sites of a trace, each described by its law, plates and shape."""
    found = {}
    for name in trace.observation_nodes:
        site = trace.nodes[name]
        if not site["infer"].get("_deterministic"):
            plates = [frame.name for frame in site["cond_indep_stack"]]
            found[name] = f"{type(site['fn']).__name__}{tuple(site['value'].shape)} in plates {plates}"
    return found


def _start_at(made: Any, given: Any) -> None:
    start = dict(given.named_parameters())
    with torch.no_grad():
        for name, own in made.named_parameters():
            if name not in start or start[name].shape != own.shape:
                raise InvalidValue(
                    f"the guide was set up on other data: its parameter {name!r} has "
                    f"{'no value' if name not in start else f'shape {tuple(start[name].shape)}'}; expected "
                    f"{tuple(own.shape)}"
                )
            own.copy_(start[name])


def check_match(own: Any, model: Any) -> None:
    """Refuses a guide whose latents are not the model's: names, shapes, supports and plates, from traces of both."""
    mine, theirs = (enumeration.latents(trace) for trace in (own, model))
    what = "the guide does not match the model"
    for kind, names in (("does not cover", theirs.keys() - mine.keys()), ("has also", mine.keys() - theirs.keys())):
        if names:
            raise InvalidValue(f"{what}: it {kind} the latents {sorted(names)}")
    for name, site in mine.items():
        other = theirs[name]
        shapes = [tuple(each["value"].shape) for each in (site, other)]
        supports = [each["fn"].support for each in (site, other)]
        plates = [[(frame.name, frame.size) for frame in each["cond_indep_stack"]] for each in (site, other)]
        for word, (left, right), same in (
            ("shape", shapes, shapes[0] == shapes[1]),
            ("support", supports, same_support(*supports)),
            ("plates", plates, plates[0] == plates[1]),
        ):
            if not same:
                raise InvalidValue(f"{what}: latent {name!r} has {word} {left} in the guide and {right} in the model")


def model_of(guide: Any) -> Any:
    """The model of a guide as the user gave it: AutoGuides wrap it to start at certain values."""
    try:
        model = guide.model
    except TypeError as error:
        raise InvalidValue(
            "the guide has lost its model, as guides of Pyro do when they are pickled or copied; make a new one from "
            "the model and load the parameters into it"
        ) from error
    wraps = model.args if isinstance(model, partial) else ()
    return wraps[1] if len(wraps) == 2 and type(wraps[0]).__name__ == "InitMessenger" else model


def set_up(guide: Any, arguments: Arguments) -> None:
    """Makes the parameters of an AutoGuide: neither the parameter store nor the random generator is touched."""
    with seeded(0), require("pyro", "bayes").get_param_store().scope():
        arguments.call(guide._setup_prototype)


def name_apart(guide: Any) -> None:
    """Gives a guide a name made from its values: Pyro would fill a guide with what its store holds under that name."""
    crc = 0
    for value in guide.parameters():
        crc = zlib.crc32(value.detach().cpu().double().numpy().tobytes(), crc)
    guide._pyro_set_supermodule(f"{type(guide).__name__}_{crc:08x}", guide._pyro_context)
