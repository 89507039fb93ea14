"""Three paradigms on the demo's digits: what is printed is short, the same again, and what it is called."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from paradigms import demo


def test_auroc_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randint(k, k + 6, (n,), generator=generator).double() for k, n in ((0, 40), (2, 30)))
    labels = torch.cat([torch.zeros(40), torch.ones(30)])
    assert demo.auroc(low, high) == pytest.approx(roc_auc_score(labels, torch.cat([low, high])))


def test_entropy_is_in_nats_and_certainty_has_none():
    found = demo.entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert found.tolist() == pytest.approx([0.6931471805599453, 0.0])


@pytest.mark.slow
def test_three_lines_each(tmp_path, capsys):
    told = demo.run(tmp_path, scale=0.01)
    assert {name: len(lines) for name, lines in told.items()} == {"adversarial": 3, "bayesian": 3, "meta": 3}
    printed = capsys.readouterr().out
    assert all(line in printed for lines in told.values() for line in lines)
    assert max(map(len, printed.splitlines())) <= 80
    again = demo.run(tmp_path, scale=0.01)
    assert [lines[1:] for lines in again.values()] == [lines[1:] for lines in told.values()]  # the first tells the time
