"""Hostile arguments at every public door: ``test_fuzz.py`` in short, ``python -m tests.fuzz`` for as long as one likes.

``doors`` walks the public names, ``good`` knows arguments that fit, ``hostile`` makes those that do not, ``judge``
calls and says what came of it, ``exclusions`` lists what is no door and why.
"""
