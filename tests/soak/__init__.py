"""Faults on purpose, and what is lost by them: ``make soak`` in full, the tests in a short form.

One file is one kind of fault; its ``run(size)`` returns an ``Outcome``. What has to come out is known beforehand: the
digest of the controls after every step of a solve that nothing disturbed. Solves that are to die run in a process of
their own, forked from one that has imported torch already.
"""
