"""A checkpoint says what it is: damaged, cut, of an older or of a newer version, or something else."""

import os
import random
import zipfile
from functools import partial

import pytest
import torch

import mfoc
from mfoc import hooks
from mfoc.hooks.history import packed
from tests.problems import mlp, same_bits

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))
END = 22 + 76  # the end record of the archive, and the digest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint, and the iterate in it."""
    path = tmp_path_factory.mktemp("saved") / "run"
    problem, cloud = mlp()
    mfoc.solve(problem, ADAM, cloud, steps=3, hooks=[hooks.Checkpoint(path)])
    return path.read_bytes(), hooks.load(path)


def old(iterate, version):
    """What earlier versions wrote."""
    record = {"format": f"mfoc.iterate.v{version}", "step": iterate.step, "controls": iterate.controls}
    record["state"] = iterate.state
    return record if version == 1 else {**record, "history": packed(iterate.history)}


def same(left, right):
    leaves = mfoc.tree.leaves
    tensors = zip(leaves(left.state["memory"]), leaves(right.state["memory"]), strict=True)
    return (
        left.step == right.step
        and same_bits(left.controls, right.controls)
        and all(torch.equal(a, b) for a, b in tensors)
        and left.state["groups"] == right.state["groups"]
        and left.history == right.history
    )


def flips(raw, count, seed=0):
    """The file with one bit turned, many times; every bit of its end among them."""
    drawn = random.Random(seed)
    bits = [drawn.randrange(8 * len(raw)) for _ in range(count)]
    for bit in [*bits, *range(8 * (len(raw) - END), 8 * len(raw), 5)]:
        turned = bytearray(raw)
        turned[bit // 8] ^= 1 << bit % 8
        yield bytes(turned)


def cuts(raw):
    """The file cut, and with bytes added, where it is most delicate."""
    ends = [0, 1, 22, len(raw) // 2, *range(len(raw) - END - 3, len(raw))]
    yield from (raw[:n] for n in ends)
    yield from (raw + extra for extra in (b"\0", b"PK", raw[-END:], raw))
    yield from (b"\0" + raw, raw[1:], raw[:99] + raw[100:], raw[:99] + b"\0" + raw[99:])


def refused(tmp_path, contents):
    """How many of these are not refused."""
    loaded = 0
    for content in contents:
        (tmp_path / "damaged").write_bytes(content)
        try:
            hooks.load(tmp_path / "damaged")
            loaded += 1
        except mfoc.InvalidValue:
            pass
    return loaded


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_missed(saved, tmp_path, count):
    assert refused(tmp_path, flips(saved[0], count)) == 0


def test_no_cut_and_no_added_byte_is_missed(saved, tmp_path):
    assert refused(tmp_path, cuts(saved[0])) == 0


def test_an_old_checkpoint_with_a_flipped_bit_is_refused_or_comes_back_as_it_was(saved, tmp_path):
    """They carry no digest: the checksums of the archive's entries are looked at."""
    path = tmp_path / "old"
    torch.save(old(saved[1], 2), path)
    whole, refusals = path.read_bytes(), 0
    for turned in flips(whole, 20):
        path.write_bytes(turned)
        try:
            assert same(hooks.load(path), saved[1])
        except mfoc.InvalidValue:
            refusals += 1
    assert refusals > 20


def test_an_entry_that_is_called_a_folder_is_not_read_as_whatever_is_in_memory(saved, tmp_path):
    path = tmp_path / "old"
    torch.save(old(saved[1], 2), path)
    raw = bytearray(path.read_bytes())
    name = raw.rfind(b"/data/1PK")
    entry = raw.rfind(b"PK\1\2", 0, name)
    raw[entry + 38] ^= 0x10  # its attributes
    path.write_bytes(raw)
    with pytest.raises(mfoc.InvalidValue, match="no plain entry"):
        hooks.load(path)


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_are_read(saved, tmp_path, version):
    torch.save(old(saved[1], version), tmp_path / "old")
    found = hooks.load(tmp_path / "old")
    assert same_bits(found.controls, saved[1].controls)
    assert found.history == (saved[1].history if version == 2 else [])
    assert found.origin is None


@pytest.mark.parametrize("sealed", [False, True])
def test_a_newer_version_is_refused_in_these_words(tmp_path, sealed):
    record = {"format": "mfoc.iterate.v12", "anything": 1, "versions": {"mfoc": "7.1"}}
    write(record, tmp_path / "new", sealed)
    with pytest.raises(mfoc.InvalidValue, match=r"format 12, written by a newer mfoc \(7\.1\).*upgrade"):
        hooks.load(tmp_path / "new")


def write(record, path, sealed=True):
    if sealed:
        with open(path, "wb") as file:
            mfoc.hooks.archive.write_archive(record, file)
    else:
        torch.save(record, path)


def test_a_checkpoint_of_this_version_without_its_digest_is_damaged(saved, tmp_path):
    path = tmp_path / "run"
    path.write_bytes(saved[0])
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(mfoc.InvalidValue, match=r"damaged.*checksum"):
        hooks.load(path)


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": 2.0}, {"step": True}, {"history": 5}, {"history": [[["a"], 3]]}, {"more": 1}],
    ids=str,
)
def test_what_is_no_iterate_is_damaged(saved, tmp_path, change):
    (tmp_path / "run").write_bytes(saved[0])
    record = torch.load(tmp_path / "run", weights_only=True)
    write({**record, **change}, tmp_path / "run")
    with pytest.raises(mfoc.InvalidValue, match="damaged"):
        hooks.load(tmp_path / "run")


def test_torch_reads_it_as_a_dict_and_the_versions_are_in_it(saved, tmp_path):
    (tmp_path / "run").write_bytes(saved[0])
    for options in ({}, {"mmap": True}):
        record = torch.load(tmp_path / "run", weights_only=True, **options)
        assert record["format"] == "mfoc.iterate.v3"
        assert record["versions"] == {"mfoc": mfoc.__version__, "torch": str(torch.__version__)}
    assert zipfile.ZipFile(tmp_path / "run").comment.startswith(b"mfoc sha256 ")


def test_what_an_iterate_is_of_is_kept(tmp_path):
    origin = {"solver": "Gradient", "settings": {"lr": 0.1, "betas": (0.9, 0.999)}, "seed": 3, "batch": None}
    hooks.Checkpoint(tmp_path / "run", every=1)(mfoc.Iterate(4, [torch.ones(2)], {}, origin=origin))
    assert hooks.load(tmp_path / "run").origin == origin


def test_large_tensors_come_back(tmp_path):
    """Larger than any buffer on the way."""
    large = torch.arange(3_000_001, dtype=torch.float64)
    hooks.Checkpoint(tmp_path / "run", every=1)(mfoc.Iterate(1, [large, large[:3]], {}))
    assert same_bits(hooks.load(tmp_path / "run").controls, [large, large[:3]])


@pytest.mark.parametrize("path", [None, 3, b"run", ["run"], open])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(mfoc.InvalidType, match="path is"):
        hooks.load(path)


@pytest.mark.parametrize(
    ("path", "words"), [("", "empty"), ("a\0b", "NUL"), ("x" * 5000, "longer"), ("/dev/zero", "device")]
)
def test_a_path_to_no_file_is_refused(path, words):
    with pytest.raises(mfoc.InvalidValue, match=words):
        hooks.load(path)


def test_what_would_block_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(mfoc.InvalidValue, match="FIFO"):
        hooks.load(tmp_path / "fifo")
    with pytest.raises(mfoc.InvalidValue, match="folder"):
        hooks.load(tmp_path)


def test_map_location(saved, tmp_path):
    (tmp_path / "run").write_bytes(saved[0])
    for where in (None, "cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, place: storage):
        assert same(hooks.load(tmp_path / "run", map_location=where), saved[1])
    with pytest.raises(mfoc.InvalidType, match="map_location is an int"):
        hooks.load(tmp_path / "run", map_location=3)
    with pytest.raises(mfoc.InvalidValue, match="map_location is 'nowhere'"):
        hooks.load(tmp_path / "run", map_location="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(mfoc.InvalidValue, match=r"it is whole.*map_location='cuda'"):
            hooks.load(tmp_path / "run", map_location="cuda")
