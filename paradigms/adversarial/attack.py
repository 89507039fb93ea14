"""The class of torchattacks that an attack of ours is, with what its users expect of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidValue, require
from mfoc.checks import check_instance
from mfoc.games.maximisers import Maximiser
from mfoc.networks import inspection
from paradigms.adversarial.views import normalised, towards


def as_two(out: Tensor) -> Tensor:
    """One logit l ``[N]`` or ``[N, 1]`` as the two logits (0, l), whose cross-entropy is the binary one of l."""
    if out.dim() == 1 or (out.dim() == 2 and out.shape[1] == 1):
        out = out.reshape(-1, 1)
        out = torch.cat([torch.zeros_like(out), out], 1)
    return out


@contextmanager
def _modes_kept(net: nn.Module) -> Iterator[None]:
    """Puts every part back into its own mode; torchattacks puts all parts into that of the whole."""
    modes = [(part, part.training) for part in net.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def attack_class(
    remake: Callable[[nn.Module], mfoc.Game],
    cloud: Callable[[Tensor, Any], mfoc.Particles],
    maximiser: Maximiser,
    untargeted: str | None = None,
    *,
    labelled: bool = True,
) -> type:
    """The class of attacks ``attack(net)``; see ``as_attack``. torchattacks is imported when it is made.

    Normalisation and mode are read at each call, as torchattacks reads them, and targets are found by its methods.

    Args:
        remake: a network to the game.
        cloud: images and labels to its particles.
        maximiser: the adversary.
        untargeted: why there is no targeted mode, where there is none.
        labelled: what the adversary raises depends on the labels; if not, they need not be given.

    Raises:
        MissingExtra: torchattacks is not installed.
    """

    class _Attack(require("torchattacks", "adversarial").attack.Attack):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__(repr(maximiser), model)
            self.supported_mode = ["default"] if untargeted else ["default", "targeted"]

        def __call__(self, inputs: Any, *args: Any, **options: Any) -> Any:
            check_instance(Tensor, "images, a tensor [N, ...]", inputs=inputs)
            applied = self._normalization_applied
            try:
                with _modes_kept(self.model):
                    return super().__call__(inputs, *args, **options)
            finally:  # theirs leaves it off when an error is raised
                if self._normalization_applied is not applied:
                    self._set_normalization_applied(applied)

        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            if labels is None and labelled:
                raise InvalidValue("labels are missing; the game's loss needs them")
            if labels is None:  # any will do, such as those that the network gives
                labels = self.get_output_with_eval_nograd(images.to(self.device)).argmax(1)
            check_instance(Tensor, "the labels, a tensor [N]", labels=labels)
            if any(inspection.random_parts(self.model)):
                raise InvalidValue(
                    "the network's dropout is on, and a game's network must be a function of its input: leave "
                    "dropout_training=False in set_model_training_mode"
                )
            images, labels = images.detach().to(self.device), labels.detach().to(self.device)
            if not len(images):
                return images.clone()
            if self.targeted:
                labels = self._target(images, labels)
            attacked = remake(self.model)
            if self._normalization_applied is False:
                attacked = normalised(attacked, self.normalize)
            if self.targeted:
                attacked = towards(attacked)
            eta = maximiser.maximise(attacked, attacked.controls, cloud(images, labels))
            return attacked.ball.enter(images, eta).detach()

        def _target(self, images: Tensor, labels: Tensor) -> Tensor:
            asked = self.attack_mode in ("targeted(random)", "targeted(least-likely)")
            try:
                found = self.get_target_label(images, labels)
            except (IndexError, RuntimeError, ValueError) as error:
                if not asked:  # a function of the user's
                    raise
                raise InvalidValue(
                    f"no target label was found in mode {self.attack_mode!r} with labels of shape "
                    f"{tuple(labels.shape)} ({labels.dtype}): {error}; the mode needs class labels, an integer tensor "
                    "[N], and as many classes as it chooses among. set_mode_targeted_by_label() takes the labels that "
                    "are given as targets"
                ) from error
            check_instance(Tensor, "one target label an image, from the function of the mode", target=found)
            if found.shape != labels.shape:
                raise InvalidValue(
                    f"the function of the mode returned targets of shape {tuple(found.shape)}; expected that of the "
                    f"labels, {tuple(labels.shape)}"
                )
            target: Tensor = found.detach().to(labels)
            return target

        def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
            if untargeted is not None:
                raise InvalidValue(untargeted)
            super()._set_mode_targeted(mode, quiet)

        @torch.no_grad()
        def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
            with _modes_kept(self.model):
                out: Tensor = super().get_output_with_eval_nograd(inputs)
            return as_two(out)

        def normalize(self, inputs: Tensor) -> Tensor:
            self._check_channels(inputs)
            out: Tensor = super().normalize(inputs)
            return out.to(inputs.dtype)

        def inverse_normalize(self, inputs: Tensor) -> Tensor:
            self._check_channels(inputs)
            out: Tensor = super().inverse_normalize(inputs)
            return out.to(inputs.dtype) if inputs.is_floating_point() else out

        def _check_channels(self, inputs: Tensor) -> None:
            if self.normalization_used is None:
                raise InvalidValue("normalisation is on without a mean; call set_normalization_used(mean, std) first")
            channels = self.normalization_used["mean"].numel()
            if inputs.dim() != 4 or (inputs.shape[1] != channels != 1):
                raise InvalidValue(
                    f"inputs have shape {tuple(inputs.shape)}; a normalisation of {channels} channels is for images "
                    f"[N, {channels}, H, W]"
                )

    return _Attack
