"""How results draw themselves: what ``mfoc.plot`` and the ``.plot()`` of results are made of, on ``mfoc.figures``.

It knows tensors and numbers, no solver and no problem, so that every result above it can be drawn by it. This is below
the public doors: it does not check its arguments, but refuses what cannot be drawn. matplotlib is imported when asked.
"""
