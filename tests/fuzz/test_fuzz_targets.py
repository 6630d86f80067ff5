"""The targets of ``make fuzz`` do what they are for, with and without atheris."""

from __future__ import annotations

import random

import pytest

import fuzz


@pytest.mark.parametrize("name", fuzz.TARGETS)
@pytest.mark.parametrize("chunk", [0, *(pytest.param(chunk, marks=pytest.mark.long) for chunk in range(1, 21))])
def test_changed_bytes_give_a_value_or_our_error(name: str, chunk: int) -> None:  # rel:B3
    signs = b'{}[]":,\\0123456789.eE+-_~#/@?=&%\n\x00\xff tnfua'
    for seed in range(chunk * 300, chunk * 300 + 300):
        rand = random.Random(seed)
        data = bytearray(rand.choice(fuzz.SEEDS[name]))
        for _ in range(rand.choice((0, 1, 2, 4, 16))):
            at = rand.randrange(len(data) + 1)
            data[at : at + rand.choice((0, 0, 1, 1, 3))] = bytes(rand.choices(signs, k=rand.choice((0, 1, 1, 2))))
        fuzz.attempt(fuzz.TARGETS[name], bytes(data))


def test_every_target_has_seeds_that_it_takes() -> None:
    assert fuzz.SEEDS.keys() == fuzz.TARGETS.keys()
    for name, seeds in fuzz.SEEDS.items():
        for seed in seeds:
            fuzz.attempt(fuzz.TARGETS[name], seed)


def test_a_fault_gets_out() -> None:
    def faulty(data: bytes) -> None:
        {}["no such key"]

    with pytest.raises(KeyError):
        fuzz.attempt(faulty, b"")
