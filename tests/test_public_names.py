"""Every public name that has ever been released: what users import goes on working, if only with a warning."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

# module: names, as of version 0.1.0
RELEASED = """
mfoc: Ball Certificate EMSA Game Gradient Info InvalidType InvalidValue Iterate MSA MfocError Minimax MissingExtra
    NonFiniteError Particles Population Problem Solution Solver Status Trajectory certify certify_module checks
    continuous costates euler euler_maruyama evaluate from_module hamiltonian heun hooks inner iterate lq maximisers
    networks per_stage plot population require rk4 rollout schemes solve testing tied to_module weight_decay
mfoc.certificate: Certificate StageCertificate certify certify_module
mfoc.checks: check_between check_integer check_non_negative check_positive
mfoc.cli: main
mfoc.game: Ball Disturbed Game costate_at entering target_of undisturbed with_target
mfoc.hooks: Checkpoint Progress Record load progress_display
mfoc.inner: Descent Evaluate Inner LBFGS Minimum check_inner
mfoc.lq: LinearQuadratic Path Riccati Terms
mfoc.maximisers: FGSM Free Maximiser PGD Play SharingMaximiser YOPO
mfoc.networks: Loss MaskedDropout Residual from_module named_stages per_sample to_module weight_decay
mfoc.plot: COLORS certificate cloud curves new_figure principal_components tidy
mfoc.pontryagin: Evaluation Trajectory adjoint costates evaluate hamiltonian hamiltonian_and_next pull_back rollout
    rollout_from value_and_slopes
mfoc.population: Fetch Population mixed_seed population seeded whole
mfoc.problem: Dynamics Particles Problem RunningCost Schedule TerminalCost check_cost per_stage tied
mfoc.schemes: Drift Scheme brownian continuous euler euler_maruyama heun rk4
mfoc.solve: Hook Info Iterate Solution Solver Status iterate solve
mfoc.solvers: EMSA Gradient MSA Minimax
mfoc.solvers.gradient: Gradient
mfoc.solvers.minimax: Minimax
mfoc.solvers.msa: EMSA MSA
mfoc.testing: check_formulation check_problem check_solver
paradigms: Formulation available load
paradigms.adversarial: FGSM Free FromTorchattacks GameCertificate GameFormulation PGD Robustness TRADES YOPO
    as_attack certify evaluate game wilson
paradigms.adversarial.certificate: GameCertificate certify
paradigms.adversarial.evaluation: Accuracy Attack Robustness evaluate wilson
paradigms.adversarial.games: GameFormulation Loss Stages TRADES check_inside frozen game
paradigms.adversarial.interop: FromTorchattacks as_attack
paradigms.bayesian: AdaGradRule AdamRule CrossEntropy Draws Drift Ensemble Evidence Follmer GaussianDrift LogDensity
    MALA NetworkPosterior PlainRule Potential Prediction PyroRBF RBF Reliability SGLD Sampler Stein ULA accuracy
    as_model band bridge_matching calibration discrepancy ece ensemble follmer langevin log_density nll predict
    reliability rmse sample svgd to_potential variational
paradigms.bayesian.bridges: CrossEntropy bridge_matching
paradigms.bayesian.density: Function LogDensity log_density
paradigms.bayesian.diffusion: Diffusion grid
paradigms.bayesian.draws: Draws check_shares
paradigms.bayesian.drifts: Drift GaussianDrift
paradigms.bayesian.ensemble: Ensemble ensemble
paradigms.bayesian.flows: MALA SGLD ULA langevin
paradigms.bayesian.follmer: Evidence Follmer follmer systematic
paradigms.bayesian.guides: GaussianGuide check_match guide_of
paradigms.bayesian.interop: Potential as_model to_potential
paradigms.bayesian.layers: ESTIMATORS RandomStage Run Weights drawn first shared softplus_inverse
paradigms.bayesian.likelihoods: Categorical Custom Gaussian Likelihood likelihood_of
paradigms.bayesian.metrics: Reliability accuracy ece nll reliability rmse
paradigms.bayesian.models: of_model
paradigms.bayesian.networks: RandomNetwork Stages check_data check_finite problem_of with_noise
paradigms.bayesian.plots: band calibration
paradigms.bayesian.posterior: NetworkPosterior as_pyro pyro_model
paradigms.bayesian.predict: Drawable Prediction predict
paradigms.bayesian.priors: Divergence Split divergence prior_of
paradigms.bayesian.sampler: Draws Flow Sampler State Steps as_density points sample sampler
paradigms.bayesian.stein: Kernel PyroRBF RBF discrepancy
paradigms.bayesian.svgd: AdaGradRule AdamRule PlainRule Rule Stein svgd
paradigms.bayesian.variational: variational
paradigms.formulation: Formulation available controls_of load
paradigms.meta: Adaptation Coordinatewise Learner MetaFormulation adapt anil evaluate few_shot from_learn2learn
    from_taskset imaml learned_update maml meta_sgd reptile residuals sinusoids tasks to_learn2learn
paradigms.meta.algorithms: anil maml meta_sgd reptile
paradigms.meta.checks: check_flag check_step_weights checked_network
paradigms.meta.convolution: Window convolve
paradigms.meta.evaluation: Adaptation Adapted adapt evaluate
paradigms.meta.few_shot: few_shot from_taskset
paradigms.meta.formulations: MetaFormulation assemble build checked_controls to_module
paradigms.meta.implicit: Equilibrium Residuals imaml residuals
paradigms.meta.inner: Inner Pair Rule
paradigms.meta.interop: Learner from_learn2learn to_learn2learn
paradigms.meta.learner: Learner
paradigms.meta.loop: Loop State
paradigms.meta.losses: Loss TaskLoss
paradigms.meta.normalisation: normalise
paradigms.meta.rules: Coordinatewise learned_update
paradigms.meta.stacked: Layer StackedNetwork Weights has_aliases pure_copy
paradigms.meta.tasks: Pair as_tasks check_range check_tasks placeholder sinusoids tasks
paradigms.reporting: Estimate normal_interval progress_bar
"""


def released() -> list[tuple[str, str]]:
    words = [line.split() for line in RELEASED.replace("\n    ", " ").strip().splitlines()]
    return [(module.rstrip(":"), name) for module, *names in words for name in names]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_released_name_is_importable():
    missing = [f"{module}.{name}" for module, name in released() if not hasattr(import_module(module), name)]
    assert not missing


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_released_name_is_found_from_the_top():
    """As in `import paradigms.bayesian.likelihoods` and then `paradigms.bayesian.likelihoods.Gaussian`."""
    missing = []
    for module, name in released():
        top, *rest = module.split(".")
        found = import_module(top)
        for part in [*rest, name]:
            found = getattr(found, part, None)
            if inspect.isfunction(found):  # a function that has, and had, the name of a module
                break
        missing += [f"{module}.{name}"] * (found is None)
    assert not missing


def test_a_package_that_nobody_has_imported_is_found_through_a_module_that_has_moved():
    code = "import paradigms.bayesian.likelihoods; print(paradigms.bayesian.likelihoods.Gaussian.__name__)"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "Gaussian"


def test_the_public_names_of_mfoc_and_the_paradigms_come_without_a_warning(recwarn):
    for module in ("mfoc", "paradigms", "paradigms.adversarial", "paradigms.bayesian", "paradigms.meta"):
        for name in import_module(module).__all__:
            getattr(import_module(module), name)
    assert not [warning for warning in recwarn if warning.category is DeprecationWarning]


def test_a_module_that_has_moved_says_where_to():
    with pytest.warns(DeprecationWarning, match=r"mfoc\.game\.Ball has moved to mfoc\.games\.Ball") as caught:
        from mfoc.game import Ball  # noqa: F401
    assert caught[0].filename == __file__
    with pytest.raises(ImportError, match="nothing"):
        from mfoc.game import nothing  # noqa: F401


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["solve", "population"])
def test_a_function_is_never_hidden_by_a_module_of_its_name(name):
    function = getattr(import_module("mfoc"), name)
    assert import_module(f"mfoc.{name}").Population if name == "population" else import_module(f"mfoc.{name}").Solution
    assert getattr(import_module("mfoc"), name) is function
    assert callable(function)
