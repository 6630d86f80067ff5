"""Measures Perdure, what the device can do at most, and peers, in one run on the same payloads: ``python -m bench``.

``programs`` (Perdure, and raw commits) and ``peers`` are what is measured; they run in processes of their own, which
know of each other nothing but ``talk``. The rest is the referee, which imports none of them.
"""
