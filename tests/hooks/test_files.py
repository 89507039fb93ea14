"""A checkpoint's file: replaced whole or not at all, with its permissions, and never in the place of anything else."""

import errno
import os
import pickle
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch

import mfoc
from mfoc import hooks
from mfoc.hooks import files

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems")
pytestmark = posix


def at(step, size=10):
    return mfoc.Iterate(step, [torch.full((size,), float(step))], {})


def save(path, step=1, size=10):
    hooks.Checkpoint(path, every=1)(at(step, size))


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def dead():
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "run"
    save(path)
    path.chmod(mode)
    save(path, 2)
    assert (mode_of(path), hooks.load(path).step) == (mode, 2)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        save(tmp_path / "run")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "run") == 0o666 & ~mask


def test_nobody_else_reads_it_while_it_is_written(tmp_path, monkeypatch):
    seen, fsync = [], files._permit
    monkeypatch.setattr(
        files, "_permit", lambda handle, *rest: (seen.append(os.fstat(handle).st_mode & 0o777), fsync(handle, *rest))
    )
    save(tmp_path / "run")
    assert seen == [0o600]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_what_it_points_to_is_replaced(tmp_path, there):
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "real", tmp_path / "run"
    if there:
        real.write_bytes(b"old")
    link.symlink_to(real)
    save(link, 3)
    assert link.is_symlink()
    assert hooks.load(real).step == hooks.load(link).step == 3
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]


def test_links_planted_in_the_place_of_the_temporary_file_are_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    checkpoint = hooks.Checkpoint(tmp_path / "run", every=1)
    (tmp_path / f".run.{os.getpid()}.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(mfoc.StorageError):
        checkpoint(at(1))
    assert victim.read_bytes() == b"mine"


def make(kind, path):
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as at_path:
            before = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                at_path.bind(path.name)
            finally:
                os.chdir(before)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket"])
def test_what_is_no_file_is_never_replaced(tmp_path, kind):
    path = tmp_path / "run"
    checkpoint = hooks.Checkpoint(path, every=1)
    make(kind, path)
    before = path.stat().st_mode
    with pytest.raises(mfoc.StorageError, match=f"is a {kind} now"):
        checkpoint(at(1))
    with pytest.raises(mfoc.InvalidValue, match=f"it is a {kind}, expected a file"):
        hooks.Checkpoint(path)
    assert path.stat().st_mode == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "empty"),
        (".", "folder"),
        ("/dev/null", "device"),
        ("a\0b", "NUL"),
        ("x" * 256, "longer"),
        ("d/" * 3000 + "x", "longer"),
        ("\ud800", "cannot write such a name"),
        ("nowhere/run", "folder does not exist"),
        ("a_file/run", "folder does not exist"),
        ("circle", "circle"),
    ],
)
def test_a_path_where_no_file_can_be_is_refused_before_the_first_step(tmp_path, path, words):
    (tmp_path / "a_file").touch()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(mfoc.InvalidValue, match=words):
        hooks.Checkpoint(os.path.join(tmp_path, path) if path else path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_file", "circle"]


@pytest.mark.parametrize("path", [None, 3, b"run", ["run"]])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(mfoc.InvalidType, match="path is"):
        hooks.Checkpoint(path)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 230])
def test_the_longest_names_there_are(tmp_path, name):
    for step in (1, 2):
        save(tmp_path / name, step)
    assert hooks.load(tmp_path / name).step == 2
    left = tmp_path / f"{hooks.Checkpoint(tmp_path / name)._target._stem}.{dead()}.{'a' * 16}.tmp"
    left.touch()
    save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_path_is_that_of_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = hooks.Checkpoint("run", every=1)
    assert (checkpoint.path, checkpoint.saved) == (tmp_path / "run", None)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    checkpoint(at(7))
    assert checkpoint.saved == hooks.load(tmp_path / "run").step == 7


@contextmanager
def at_most(size):
    """Files may not be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("room", [0, 100, 30_000, 200_000])
def test_where_no_space_is_left_the_old_checkpoint_stays(tmp_path, room):
    path = tmp_path / "run"
    save(path)
    checkpoint = hooks.Checkpoint(path, every=1)
    with at_most(room), pytest.raises(mfoc.StorageError, match=f"no space left on {path}") as caught:
        checkpoint(at(2, 100_000))
    assert isinstance(caught.value, OSError)
    assert (caught.value.errno, caught.value.path) == (errno.EFBIG, path)
    assert (hooks.load(path).step, [p.name for p in tmp_path.iterdir()]) == (1, ["run"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on"),
        (errno.EDQUOT, "no space left on.*quota"),
        (errno.EIO, "cannot be written: Inp"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_whatever_the_system_refuses_is_said(tmp_path, monkeypatch, number, words, call):
    save(tmp_path / "run")
    checkpoint = hooks.Checkpoint(tmp_path / "run", every=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
        with pytest.raises(mfoc.StorageError, match=words) as caught:
            checkpoint(at(2))
    assert caught.value.errno == number
    assert (hooks.load(tmp_path / "run").step, checkpoint.saved) == (1, None)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_gone(tmp_path):
    (tmp_path / "runs").mkdir()
    checkpoint = hooks.Checkpoint(tmp_path / "runs" / "run", every=1)
    (tmp_path / "runs").rmdir()
    with pytest.raises(mfoc.StorageError, match="its folder does not exist any more"):
        checkpoint(at(1))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_to_is_refused_before_the_first_step(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o755)
    for above in (tmp_path, *tmp_path.parents[: len(tmp_path.parents) - 2]):  # of which pytest makes some its own
        above.chmod(above.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        with pytest.raises(mfoc.StorageError, match="cannot be written: Permission denied") as caught:
            hooks.Checkpoint(folder / "run")
    finally:
        os.seteuid(0)
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_interrupts_a_save_is_raised_as_it_is(tmp_path, monkeypatch, failure):
    """Torch, which closes its archive all the same, would put an error of its own over it."""
    save(tmp_path / "run")
    passing = mfoc.hooks.archive._Sealing._pass
    calls = []

    def interrupted(self, data):
        calls.append(len(data))
        if len(calls) == 9:
            raise failure
        passing(self, data)

    monkeypatch.setattr(mfoc.hooks.archive._Sealing, "_pass", interrupted)
    with pytest.raises(failure):
        save(tmp_path / "run", 2)
    assert (hooks.load(tmp_path / "run").step, [p.name for p in tmp_path.iterdir()]) == (1, ["run"])


def test_what_dead_processes_have_left_is_removed_and_nothing_else(tmp_path):
    gone, token = dead(), "0123456789abcdef"
    orphans = {f".run.{gone}.{token}.tmp", f".run.{gone}.tmp", f".run.{10**30}.{token}.tmp"}
    others = {f".run.{os.getppid()}.{token}.tmp", f".run.{os.getpid()}.{token}.tmp"}  # of processes that are alive
    others |= {f".other.{gone}.{token}.tmp", f".run.2.{gone}.{token}.tmp", "run.tmp", f".run.{gone}.{token}", "notes"}
    for name in orphans | others:
        (tmp_path / name).touch()
    (tmp_path / f".run.{gone}.{'f' * 16}.tmp").symlink_to(tmp_path / "notes")
    hooks.Checkpoint(tmp_path / "run")
    assert {p.name for p in tmp_path.iterdir()} == others | {f".run.{gone}.{'f' * 16}.tmp"}


def test_one_that_is_being_written_is_left_alone_whatever_its_number(tmp_path):
    """Numbers of processes say nothing over machines and containers: it is locked."""
    name = tmp_path / f".run.{dead()}.{'0' * 16}.tmp"
    with open(name, "wb") as file:
        files._lock(file.fileno())
        hooks.Checkpoint(tmp_path / "run")
        assert name.exists()
    hooks.Checkpoint(tmp_path / "run")
    assert not name.exists()


def test_one_of_an_earlier_process_of_the_same_number_is_removed(tmp_path):
    """In a container every process may have the number 1."""
    name = tmp_path / f".run.{os.getpid()}.{'0' * 16}.tmp"
    name.touch()
    os.utime(name, (1e9, 1e9))
    hooks.Checkpoint(tmp_path / "run")
    assert not name.exists()


def test_threads_on_one_path_do_not_collide(tmp_path):
    failures = []

    def work(first):
        checkpoint = hooks.Checkpoint(tmp_path / "run", every=1)
        try:
            for step in range(first, first + 10):
                checkpoint.start(1)
                checkpoint(at(step, 1000))
                assert set(hooks.load(tmp_path / "run").controls[0].tolist()) <= set(map(float, range(400)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_error_leaves_a_checkpoint(tmp_path):
    checkpoint = hooks.Checkpoint(tmp_path / "run", every=1000)
    checkpoint(at(5))
    assert not (tmp_path / "run").exists()
    checkpoint.failed(at(6))
    assert checkpoint.saved == hooks.load(tmp_path / "run").step == 6
