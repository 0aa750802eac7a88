import numpy as np

from reparam.atoms import Atoms


def live(*shape):
    return np.ones(shape, bool)


def test_ties_hold_across_chains():
    atoms = Atoms()
    a, b, c = atoms.new(2), atoms.new(2), atoms.new(2)
    atoms.unite(a, b)
    atoms.unite(c, b[::-1])
    assert atoms.roots(c).tolist() == atoms.roots(a)[::-1].tolist()
    assert len(np.unique(atoms.roots(np.arange(atoms.count)))) == 2


def test_a_channel_is_kept_if_any_tied_one_is_read():
    atoms = Atoms()
    a, b = atoms.new(3), atoms.new(3)
    atoms.unite(a, b)
    atoms.read(b[1:2])
    assert atoms.kept(a).tolist() == [False, True, False]


def test_later_ties_and_reads_count():
    atoms = Atoms()
    a = atoms.new(2)
    assert not atoms.kept(a).any()
    b = atoms.new(1)
    atoms.unite(a[:1], b)
    atoms.read(b)
    assert atoms.kept(a).tolist() == [True, False]


def test_groups_keep_as_many_channels_as_the_largest_and_empty_ones_none():
    atoms = Atoms()
    into, out = atoms.new(9).reshape(3, 3), atoms.new(6).reshape(3, 2)
    inputs = live(3, 3)
    inputs[1, 1:] = False
    atoms.balance(into, out, inputs)
    atoms.read(out[0])  # a group of three live inputs
    atoms.read(out[1, :1])  # a group of one
    assert atoms.kept(into).sum(1).tolist() == [3, 3, 0]
    assert atoms.kept(out).sum(1).tolist() == [2, 2, 0]


def test_a_kept_channel_keeps_the_groups_before_it():
    atoms = Atoms()
    a, b, c = (atoms.new(4).reshape(2, 2) for _ in range(3))
    atoms.balance(b, c, live(2, 2))
    atoms.balance(a, b, live(2, 2))
    atoms.read(c[0, :1])
    assert atoms.kept(a).any(1).tolist() == [True, False]
