from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from common.crypto.primitives import aes_ctr_keystream
from common.crypto.randomness import REPEATABLE_WORDS, Randomness, SystemRandomness, repeatable_randomness
from common.errors import CryptoError, NotPrivate


def stream(name: str = "a", seed: int = 1) -> Randomness:
    return repeatable_randomness(name, seed=seed, acknowledge=REPEATABLE_WORDS)


def test_keystream_matches_the_published_vector() -> None:
    # NIST SP 800-38A, F.5.5: CTR-AES256.Encrypt, block 1 and 2; keystream = ciphertext xor plaintext
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    cipher = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")
    assert bytes(a ^ b for a, b in zip(plain, aes_ctr_keystream(key, counter, 32), strict=True)) == cipher


@pytest.mark.parametrize(("key", "nonce"), [(16, 16), (32, 12), (0, 16)])
def test_keystream_refuses_other_lengths(key: int, nonce: int) -> None:
    with pytest.raises(CryptoError):
        aes_ctr_keystream(bytes(key), bytes(nonce), 1)


def test_secret_requests_never_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    urandom = os.urandom

    def spy(n: int) -> bytes:
        seen.append(urandom(n))
        return seen[-1]

    monkeypatch.setattr("common.crypto.randomness.os.urandom", spy)
    source = SystemRandomness()
    with ThreadPoolExecutor(4) as pool:
        draws = list(pool.map(source.take, [64] * 200))
    assert len(set(draws)) == len(set(seen)) == 200
    assert all(len(key) == 32 for key in seen)


def test_a_forked_child_draws_other_bytes() -> None:
    read, write = os.pipe()
    script = (
        "import os,sys;from common.crypto.randomness import SystemRandomness as S;s=S();s.take(8);p=os.fork();"
        "os.write(int(sys.argv[1]),s.take(32));os.wait() if p else os._exit(0)"
    )
    # in a fresh interpreter, since forking the test runner with its threads is unsafe
    subprocess.run([sys.executable, "-c", script, str(write)], pass_fds=[write], check=True)
    drawn = os.read(read, 64)
    os.close(read)
    os.close(write)
    assert len(drawn) == 64
    assert drawn[:32] != drawn[32:]


def test_nothing_is_kept_or_printed() -> None:
    source = SystemRandomness()
    assert vars(source) == {}
    shown = repr(stream("visible", seed=123456789))
    assert "not private" in shown
    assert "123456789" not in shown


def test_repeatable_streams_need_the_words_and_are_marked() -> None:
    with pytest.raises(NotPrivate, match="seed can remove"):
        repeatable_randomness("a", seed=1, acknowledge="yes")
    assert not stream().private
    assert SystemRandomness().private


def test_repeatable_streams_depend_on_name_seed_and_order() -> None:
    one = stream()
    first, second = one.take(40), one.take(40)
    assert first != second
    again = stream()
    assert (again.take(40), again.take(40)) == (first, second)
    assert stream("b").take(40) != first
    assert stream(seed=2).take(40) != first


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_repeatable_streams_are_not_copied(duplicate: Any) -> None:
    with pytest.raises(TypeError, match="twice"):
        duplicate(stream())


def test_uniforms_are_uniform() -> None:
    drawn = stream("uniform").uniforms(200_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi2 = float(((counts - 2000) ** 2 / 2000).sum())
    assert 50 < chi2 < 160  # 99 degrees of freedom: 4 σ is ±56


@pytest.mark.parametrize("rate", [0.0, 0.032, 0.5, 1.0])
def test_coins_keep_their_rate(rate: float) -> None:
    drawn = stream("coins").coins(200_000, rate)
    deviation = abs(drawn.mean() - rate)
    assert deviation <= 4.5 * np.sqrt(rate * (1 - rate) / 200_000)


def test_permutations_are_permutations_with_every_order_alike() -> None:
    source = stream("permutation")
    assert sorted(source.permutation(50).tolist()) == list(range(50))
    assert source.permutation(0).size == 0
    orders = [tuple(source.permutation(3).tolist()) for _ in range(6000)]
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    assert counts.size == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 25
