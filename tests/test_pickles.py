"""What was pickled before a renaming is read after it, and nothing of it is lost."""

import pickle

import torch

import mfoc


def half(step):
    return 0.5


def test_a_solver_pickled_under_an_old_field_keeps_its_value():
    solver = mfoc.Gradient(torch.optim.SGD, lr_schedule=half)
    read = mfoc.Gradient.__new__(mfoc.Gradient)
    read.__setstate__({"optimizer": torch.optim.SGD, "recompute": False, "schedule": half})
    assert read == solver
    assert pickle.loads(pickle.dumps(solver)) == solver


def test_classes_are_found_under_the_paths_they_had(recwarn):
    measure = mfoc.Measure(1.0, 0.5, 2.0)
    text = pickle.dumps(measure, protocol=0).replace(b"mfoc.certificate.study", b"mfoc._study")
    assert pickle.loads(text) == measure
    error = pickle.dumps(mfoc.InvalidValue("no"), protocol=0).replace(b"mfoc.errors", b"mfoc._errors")
    assert str(pickle.loads(error)) == "no"


def test_problems_of_module_functions_and_results_survive():
    cloud = mfoc.Particles(torch.ones(3, 2))
    assert torch.equal(pickle.loads(pickle.dumps(cloud)).state, cloud.state)
