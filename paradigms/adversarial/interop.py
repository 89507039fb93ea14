"""torchattacks in both directions: its attacks as maximisers, our maximisers as attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, require
from mfoc.checks import check_callable, check_instance, kind_of
from mfoc.games import entering, undisturbed, with_target
from mfoc.games.maximisers import Maximiser
from mfoc.seeding import mixed_seed, seeded, turn
from paradigms.adversarial.attack import as_two, attack_class
from paradigms.adversarial.games import GameFormulation

_ROUNDING = 1e-4  # relative: attacks project in the input's precision, which may be less than this


@dataclass(frozen=True)
class FromTorchattacks:
    """Any attack of torchattacks as a maximiser.

    The attack sees the network from the disturbed stage on, with inputs scaled from the game's bounds to [0, 1], so its
    ``eps`` is in units of that range. It maximises its own loss (cross-entropy as a rule) whatever the game's is. It
    draws from torch's global generator, which is seeded for the call and put back.

    Attributes:
        attack: makes the attack: ``lambda net: torchattacks.APGD(net, eps=0.1, steps=10)``.
    """

    attack: Callable[[nn.Module], Any]

    def __post_init__(self) -> None:
        check_callable("a function of the network: lambda net: torchattacks.PGD(net, eps=0.1), say", attack=self.attack)
        if hasattr(self.attack, "get_logits") and not isinstance(self.attack, type):
            raise InvalidType("attack is made for one network; expected a function of the network that makes it")
        if hasattr(self.attack, "maximise"):
            raise InvalidType(f"attack is {self.attack!r}, a maximiser; use (an instance of) it as it is")

    @cached_property
    def _made(self) -> dict[torch.device, tuple[_Logits, Any]]:
        # One attack for each device, used again: torchattacks keeps every attack's network alive for good.
        return {}

    def maximise(
        self, game: mfoc.Game, controls: Any, particles: mfoc.Particles, generator: torch.Generator | None = None
    ) -> Tensor:
        """See ``mfoc.maximisers.Maximiser``.

        Raises:
            InvalidValue: no bounds, an attack that leaves the ball, or one that cannot take this input.
        """
        if game.ball.bounds is None or not all(map(math.isfinite, game.ball.bounds)):
            raise InvalidValue(
                f"bounds is {game.ball.bounds}; torchattacks clamps to a range, so give the game the range of its data"
            )
        states = entering(game, controls, particles)
        x = game.target(states)
        labels = _labels(particles.data)
        low, high = game.ball.bounds
        logits, attack = self._on(x.device)
        first = 0 if particles.index is None else int(particles.index[0])  # batches of one cloud are not drawn alike
        with _randomness(generator, x.device, first), logits.of(game, controls, states, particles.data):
            try:
                found = attack((x - low) / (high - low), labels)
            except (IndexError, RuntimeError, ValueError) as error:
                needs = "" if x.dim() == 4 else "; many attacks take images [N, C, H, W] only"
                raise InvalidValue(
                    f"{_name(attack)} failed on inputs of shape {tuple(x.shape)}: {error}{needs}"
                ) from error
        if found.shape != x.shape or not found.isfinite().all():
            what = f"shape {tuple(found.shape)}" if found.shape != x.shape else "NaN or infinite values"
            raise InvalidValue(f"{_name(attack)} returned {what} for inputs of shape {tuple(x.shape)}")
        eta = found.detach().to(x) * (high - low) + low - x
        inside = game.ball.project(eta)
        rounding = max(_ROUNDING, 2 * torch.finfo(x.dtype).eps)
        if float((eta - inside).abs().max()) > rounding * (high - low):
            raise InvalidValue(
                f"{_name(attack)} left the ball of the game (epsilon {game.ball.epsilon:g}, {game.ball.norm}); make it "
                f"with eps={game.ball.epsilon / (high - low):g}"
            )
        return inside

    def _on(self, device: torch.device) -> tuple[_Logits, Any]:
        if device not in self._made:
            logits = _Logits(device)
            attack = self.attack(logits)
            if not isinstance(attack, require("torchattacks", "adversarial").attack.Attack):
                raise InvalidType(f"attack(net) returned {kind_of(attack)}; expected a torchattacks attack")
            self._made[device] = (logits, attack)
        _check_mode(self._made[device][1])
        return self._made[device]


def _check_mode(attack: Any) -> None:
    """Refuses what means something else within a game; it may be set between two calls."""
    for part in (attack, *attack._attacks.values()):  # noqa: SLF001  torchattacks has no other door
        if part._normalization_applied is not None:  # noqa: SLF001
            raise InvalidValue(
                f"{_name(part)} has a normalisation of its own, which would change the inputs that the game's bounds "
                "scale to [0, 1]: make it without set_normalization_used, and put the normalisation into the network"
            )
        if part.targeted and part.attack_mode == "targeted(label)":
            raise InvalidValue(
                f"{_name(part)} goes towards the labels, and those of a game are the true ones: choose the targets "
                "with set_mode_targeted_by_function, for example"
            )


def _name(attack: Any) -> str:
    return str(getattr(attack, "attack", type(attack).__name__))


def _labels(z: Any) -> Tensor:
    labels = undisturbed(z)
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.numel() == len(labels):
        whole = labels.flatten()
        labels = whole.long() if bool(((whole == 0) | (whole == 1)).all()) else labels  # those of one logit
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        raise InvalidType("torchattacks needs class labels: the data of the particles must be an integer tensor [N]")
    return labels


class _Logits(nn.Module):
    """The network of a game from its disturbed stage on, on inputs scaled to [0, 1]; see ``as_two`` for one logit."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        # torchattacks asks the first parameter where the network is.
        self.place = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)
        self._play: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def of(self, game: mfoc.Game, controls: Any, states: Any, z: Any) -> Iterator[None]:
        """For the length of a with-block, the network at these controls."""
        assert game.ball.bounds is not None
        low, high = game.ball.bounds
        data = undisturbed(z)

        def play(x: Tensor) -> Tensor:
            point = x * (high - low) + low
            last: Any = with_target(game.part, states, point)
            for t in range(game.stage, game.stages):
                last = game.dynamics(t, last, game.schedule(controls, t), data)
            out: Tensor = last if isinstance(last, Tensor) or game.part is None else last[game.part]
            return as_two(out)

        self._play = play
        try:
            yield
        finally:
            self._play = None

    def forward(self, x: Tensor) -> Tensor:
        if self._play is None:
            raise InvalidValue("the network cannot be run while the attack is made, only while it attacks")
        return self._play(x)


def _randomness(generator: torch.Generator | None, device: torch.device, number: int) -> AbstractContextManager[None]:
    """Global randomness for the length of a call: a function of the generator and a number, then put back.

    As it is when the generator is None. Threads take turns either way: an attack holds the network it attacks.
    """
    if generator is None:
        return turn()
    key = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return seeded(mixed_seed(key, number % 2**63), device)


def as_attack(formulation: GameFormulation, maximiser: Maximiser, net: nn.Module | None = None) -> Any:
    """A maximiser as an attack of torchattacks, which can be used wherever one can (in ``MultiAttack`` for example).

    It attacks ``attack.model`` as it is at the time of the call, in the mode that torchattacks has it in (evaluation,
    unless ``set_model_training_mode`` asks for another), with the loss, the ball and the disturbed stage of the
    formulation, and draws from torch's global generator. Modes and averages of the network are as before the call.

    After ``set_normalization_used(mean, std)`` images are taken and returned normalised; epsilon and the bounds are of
    images that are not. A targeted mode lowers the game's cost at the target label. For TRADES labels may be left out.

    Args:
        formulation: what ``game`` returned for a network; its bounds must be (0, 1), the range of torchattacks.
        maximiser: the adversary.
        net: the network to attack; the one of the formulation when None. Attacks that are combined need one and the
            same network.

    Raises:
        InvalidType, InvalidValue: a formulation of a problem, or other bounds. The attack raises them, too: in a
            targeted mode for TRADES or an attack of torchattacks, and for images that a normalisation does not fit.
        MissingExtra: torchattacks is not installed.
    """
    if not isinstance(formulation, GameFormulation) or formulation.remake is None:
        raise InvalidType("formulation has no network; expected what paradigms.adversarial.game(net, ...) returned")
    check_instance(Maximiser, "PGD(...), YOPO(...) or the like", maximiser=maximiser)
    check_instance(nn.Module | None, "a torch.nn.Module or None", net=net)
    made = formulation.problem
    if made.ball.bounds != (0.0, 1.0):
        raise InvalidValue(
            f"the game has bounds {made.ball.bounds}; torchattacks works on images in (0, 1): scale the data to that "
            "range and make the game with bounds=(0, 1)"
        )
    if made.stage != 0:
        raise InvalidValue(f"the game disturbs stage {made.stage}; an attack changes the input, stage 0")
    if made.part is not None and not formulation.pairs:
        raise InvalidValue(
            f"the game disturbs {made.part!r} of several inputs, and an attack of torchattacks is given one tensor: "
            "make the game with a module of one input, which holds the others"
        )
    untargeted = None
    if formulation.pairs:
        untargeted = (
            "a TRADES game has no target: its adversary raises a divergence in which no label enters. Attack with a "
            "game of the loss alone, game(net, F.cross_entropy, ...)"
        )
    elif isinstance(maximiser, FromTorchattacks):
        untargeted = (
            "the maximiser is an attack of torchattacks, which has modes of its own and does not see the game's loss; "
            "set the mode on that attack, where it is made"
        )
    labelled = not formulation.pairs
    attack = attack_class(formulation.remake, formulation.cloud, maximiser, untargeted, labelled=labelled)
    return attack(formulation.net if net is None else net)
