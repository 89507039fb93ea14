"""What is no door: it is short, and each line has its reason."""

from __future__ import annotations

# Modules below the doors. The docstring of each says so, in these words.
SENTENCE = "does not check its arguments"
MODULES = {
    "mfoc.tree",
    "mfoc.derivatives",
    "mfoc.distributed",
    "mfoc.printing",
    "mfoc.checks",
    "mfoc.deprecation",
    "mfoc.errors",
    "mfoc.vectorisation",
    "mfoc.lagrangian",
    "mfoc.networks.inspection",
    "mfoc.networks.packed",
    "mfoc.networks.cuts",
}

# What functions return and nobody makes; named tuples are results, too.
_RESULTS = """
    Certificate Measure StageCertificate Verdict Solution Info Iterate Coupling
    Bounds GaussianBottleneck InformationBottleneck InformationPlane LayerInformation FittedKernel Laziness
    NTKConvergence WidthDrift Alignment Annealing DoubleWell Escape FlatSharp GradientNoise ModifiedEquation NoiseScales
    Scale Sharpness ValidSDE BlockDiagnosis Course Diagnosis FixedPoint Initialisation PhaseDiagram ResidualSignal
    WidthCheck WithHead Extremal FittedValue GridValue Verification Value DensitySolution Exploitability PriceOfAnarchy
    NetworkProblem Measurement Feedback Policy Tracking GameCertificate GameFormulation Robustness Draws Ensemble
    Evidence Follmer NetworkPosterior PathProblem Potential Prediction Reliability Sampler Adaptation MetaFormulation
    Region RowRegion Constraint Population Tape FunctionalModule HasControls Bellman Rates
"""
RESULTS = set(_RESULTS.split())

NAMES = {
    "mfoc.euler": "a scheme, which continuous calls between checks of its own",
    "mfoc.heun": "the same",
    "mfoc.rk4": "the same",
    "mfoc.rk38": "the same",
    "mfoc.per_stage": "a schedule, which a problem calls on controls that it has checked",
    "mfoc.tied": "the same",
    "mfoc.compiled": "compiles, which takes a minute; see tests/test_compilation.py",
    "mfoc.plot.certificate": "takes its certificates one after another",
    "mfoc.seeding.mixed_seed": "below everything that is seeded",
    "mfoc.seeding.seeded": "the same",
    "mfoc.hooks.TensorBoard": "needs an extra that is not always there; see tests/hooks/test_tensorboard.py",
    "mfoc.require": "an error of its own: MissingExtra",
    "mfoc.law.Tape": "what the library holds the law with while it looks at single particles",
    "mfoc.law.taped": "the same",
    "mfoc.law.frozen": "the same",
    "mfoc.law.is_frozen": "the same",
    "mfoc.law.shared": "the same",
    "mfoc.law.count": "the same",
    "mfoc.law.is_single": "asked by batch norm, of the batch that it was given",
    "mfoc.law.jointly": "takes its clouds one after another",
    "mfoc.networks.functional": "below from_module",
    "mfoc.networks.place": "below to_module",
    "mfoc.networks.named_stages": "below from_module",
    "mfoc.constraints.listed": "below Problem",
    "mfoc.interacting.check_interaction": "asked by solve, of what it has checked",
    "mfoc.interacting.check_own": "the same",
    "mfoc.particles.concatenated": "below population",
    "mfoc.particles.usable": "below population",
    "mfoc.bounds.region": "below Problem",
    "mfoc.games.costate_at": "asked by maximisers, of what a game has checked",
    "mfoc.games.entering": "the same",
    "mfoc.games.target_of": "the same",
    "mfoc.games.undisturbed": "the same",
    "mfoc.games.with_target": "the same",
    "mfoc.compilation.validation_kept": "a context of compiled",
    "mfoc.plot.new_figure": "below the plots",
    "mfoc.plot.tidy": "below the plots",
}

# Methods that the library calls on what users hand to it, between checks of its own; by name, or by class and name.
_METHODS = {
    "a solver's protocol, which solve and iterate call": (
        "init step follow in_place evaluate violation discretised over get_lr add_param_group load_state_dict "
        "state_dict mean_momentum mean_control settings changed"
    ),
    "an admissible set's, and a constraint's": (
        "bend check dimension face land limits penalty project stationary rows missed next_multiplier of term as_bounds"
    ),
    "a problem's own parts": (
        "check_controls check_played check_potential check_stages check_rows check_agrees check_bridges bridges "
        "projected rebuilt schedule stretched given increment forward policy dopri5.__call__"
    ),
    "a game's and a maximiser's protocol": "ascend enter gap sample disturb target maximise plan begin play",
    "a minimiser's": "minimise moved warm",
    "a hook's, which solve calls": (
        "Record.__call__ CSV.__call__ TensorBoard.__call__ start finish failed close "
        "NoiseScale.__call__ Checkpoint.__call__ Progress.__call__ AdaptiveBatch.__call__ measure"
    ),
    "a sampler's flow, rule and kernel": "memory move direction draw normals value_and_score paths",
    "a population's protocol, which solve calls": "cloud fetch epoch again described",
    "a likelihood's protocol": "check_output cost log_prob",
    "made of results by the library": "later of_fitting noting row modules at_mean indices discretise",
    "an estimator's protocol": "about_input about_labels",
    "dynamic programming's, on states that hjb has checked": (
        "best bounds control expectation tried terminal "
        "value above_terminal Grid.coefficients Grid.evaluate Grid.inside Grid.nearest"
    ),
    "called in a simulation, on what continuous has checked": "diffusion drift diagonals",
    "below from_module": (
        "at on run settle twin with_gradients FunctionalModule.__call__ FunctionalModule.initial mend"
    ),
    "figures": "plot",
}
METHODS = set(" ".join(_METHODS.values()).split())

# Results that say of themselves, by NaN or infinity, what is not known.
DOCUMENTED = {
    "controls_of": "controls are what they are; solve looks at them",
    "Box": "a side without a bound is infinite",
    "DDPNOpt": "an infinite clip is none",
    "Particles": "solve looks at what it is given",
    "mean": "dynamics take means of what they are given; solve looks at the states",
    "variance": "the same",
    "covariance": "the same",
    "kernel_mean": "the same",
    "rollout": "what leaves the range of its dtype does so in sight; solve stops there",
    "evaluate": "the same",
    "costates": "the same",
    "hamiltonian": "the same",
    "Measure": "an end that is not known is infinite; what was not measured is NaN",
    "StageCertificate": "what was not measured is NaN",
    "Certificate": "what was not measured is NaN",
    "Scale": "no signal beside the noise: an infinite scale",
    "NoiseScales": "the same",
    "NoiseScales.lr": "the same",
    "escape_time": "a time too large for a float is infinite",
    "mean_first_passage_time": "the same",
    "SignalPropagation.iterate": "a length that diverges is infinite, and what follows NaN",
    "kramers_time": "a time too large for a float is infinite",
    "Escape": "the same",
    "NTKConvergence": "above the largest stable step the losses diverge, as the result says",
    "gradient_depth": "a depth that is not reached is infinite",
    "DoubleWell.__call__": "a potential is infinite at infinity",
    "LogDensity.__call__": "where the density is zero its logarithm is infinite; samplers check where they start",
    "LogDensity.score": "the same",
    "LogDensity.named": "the same",
    "LogDensity.unravel": "the same",
    "LogDensity.ravel": "the same",
    "BlockDiagnosis": "what a block has no counterpart of is NaN",
    "BlockInitialisation": "the same",
    "Initialisation": "the same",
    "Diagnosis": "the same",
    "Reliability": "a bin without predictions has no accuracy",
}

# Doors that may draw from the process's generators, as their docstrings say, or change what they are given.
RANDOM = ("orthogonal_", "delta_orthogonal_", "NetworkPosterior.__call__", "Learner.clone", "as_model")
MUTABLE = ("_", "CSGD", "CMSGD", "OptimalAnnealing", "LearningRateControl", "refresh_averages", "drift_against_width")

# What takes seconds at its best: these have fewer trials.
SLOW = ("certify", "certify_module", "hjb.solve_bvp", "FittedValue.__call__")
