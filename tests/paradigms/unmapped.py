"""Networks that torch.func.vmap cannot follow, or follows elsewhere, and the same evaluated by plain torch."""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cells, self.head = kind(3, 4, batch_first=True, **options), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Own(nn.Module):
    """A forward of one's own over two layers."""

    def __init__(self, forward):
        super().__init__()
        self.first, self.second, self.run = nn.Linear(3, 4), nn.Linear(4, 2), forward

    def forward(self, x):
        return self.run(self, x)


class Experts(nn.Module):
    """Each input goes to one of two experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList(nn.Linear(3, 2) for _ in range(2))

    def forward(self, x):
        weights, out = self.gate(x).softmax(1), x.new_zeros(len(x), 2)
        for k, expert in enumerate(self.experts):
            if (mine := weights.argmax(1) == k).any():
                out[mine] = weights[mine, k, None] * expert(x[mine])
        return out


class Bag(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(5, 3, **options), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.bag(x))


class Functional(nn.Module):
    """A padding row that no submodule tells of."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(5, 3)), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(nn.functional.embedding(x, self.table, padding_idx=0).flatten(1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return self.scale * x


class Encoder(nn.Module):
    def __init__(self, masked):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
        self.body, self.head, self.masked = nn.TransformerEncoder(layer, 2), nn.Linear(4, 2), masked
        self.eval()

    def forward(self, x):
        mask = (torch.arange(x.shape[1]) >= 3).expand(x.shape[:2]) if self.masked else None
        return self.head(self.body(x, src_key_padding_mask=mask).sum(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)
        self.eval()

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def gated(net, x):
    hidden = net.first(x).tanh()
    return net.second(hidden if hidden.mean() > 0 else -hidden)


def asking(net, x):
    return net.second(net.first(x).tanh()) * (1 + float(net.first.weight.sum().item() > 0))


def energy(net, x):
    """The gradient of an energy."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net.first(x).tanh().square().sum(), x, create_graph=True)
    return net.second(net.first(slope))


def checkpointed(net, x):
    return net.second(checkpoint(lambda h: net.first(h).tanh(), x, use_reentrant=False))


# name -> the network, the kind of inputs, whether a loop is needed over weights
NETS = {
    "lstm": (lambda: Recurrent(nn.LSTM), "sequences", True),
    "deep lstm": (lambda: Recurrent(nn.LSTM, num_layers=2), "sequences", True),
    "gru": (lambda: Recurrent(nn.GRU), "sequences", True),
    "rnn": (lambda: Recurrent(nn.RNN), "sequences", True),
    "branch on values": (lambda: Own(gated), "rows", True),
    "item": (lambda: Own(asking), "rows", True),
    "energy": (lambda: Own(energy), "rows", True),
    "checkpoint": (lambda: Own(checkpointed), "rows", True),
    "experts": (Experts, "rows", True),
    "bag": (Bag, "words", False),
    "bag of maxima": (lambda: Bag(mode="max"), "words", False),
    "padded bag": (lambda: Bag(padding_idx=0), "words", None),
    "padded words": (
        lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 2)), "words", None
    ),
    "padding by a function": (Functional, "words", None),
    "number": (lambda: nn.Sequential(nn.Linear(3, 4), Scale(), nn.Tanh(), nn.Linear(4, 2)), "rows", False),
    "encoder": (lambda: Encoder(False), "tokens", False),
    "masked encoder": (lambda: Encoder(True), "tokens", False),
    "attention": (Attention, "tokens", False),
}  # fmt: skip


def made(name):
    """A network, inputs and labels."""
    make, kind, _ = NETS[name]
    torch.manual_seed(0)
    net, generator = make().double(), torch.Generator().manual_seed(1)
    shape = {"rows": (6, 3), "sequences": (6, 5, 3), "tokens": (6, 4, 4)}
    x = (
        torch.randint(0, 5, (6, 4), generator=generator)
        if kind == "words"
        else torch.randn(shape[kind], generator=generator, dtype=torch.float64)
    )
    return net, x, torch.arange(6) % 2


def at(net, weights):
    """A copy with these weights as its own parameters: plain torch, nothing else."""
    solved = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in solved.named_parameters():
            parameter.copy_(weights[name])
    return solved


def slopes(value, net):
    """Gradients of a number in the parameters of a network, by name; zeros where it does not depend on one."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))
