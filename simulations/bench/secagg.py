"""What a masked sum costs, next to Flower's SecAgg+ client code on the same vector in the same process.

::

    python -m simulations.bench.secagg --dimensions 100000 800000 --cohorts 3 10 100 --output secagg.json

Each figure is the least of some repetitions of the real code, so that a busy machine disturbs it little. Ours applies
the masks of a long vector in two threads, as it does in use; all else, and Flower's code, takes one. Flower's client
draws one private mask and one pairwise mask per other institution (``flwr.client.mod.secure_aggregation``), agreeing on
each key again in each round; its masks are timed one by one, at most ``--flower-masks`` of them, and the time of all is
that of one times their number.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import numpy as np
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs

from common.config import PLAIN_WORDS, BaseModelConfig, RunConfig
from common.crypto.primitives import Identity, aes_ctr_keystream, expand_key, random_key
from common.manifest.manifest import (
    Manifest,
    Member,
    PrivacyTerms,
    SecureAggregationTerms,
    canonical_bytes,
    manifest_digest,
)
from common.secagg import aggregator, masking, participant
from common.secagg.messages import Step
from common.secagg.ring import from_integers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from common.secagg.aggregator import Open
    from common.secagg.participant import Contributing, Participant
    from common.secagg.ring import Words

T = TypeVar("T")

SCALE: Final = 2.0**20
NOISE_DEVIATION: Final = 1000.0
HEAD: Final = bytes(32)
FLOWER_RANGE: Final = 1 << 22
FLOWER_MODULUS: Final = 1 << 32
FLOWER_CLIP: Final = 8.0
ZERO_DIGEST: Final = "sha256:" + "0" * 64
PRIVACY: Final = PrivacyTerms(
    unit="image", epsilon=8, delta=1e-6, clip=1, sampling_rate=1, noise_multiplier=1, maximum_units=1
)
"""Stated alone: what noise costs is measured by itself."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes of one setting, per institution unless said otherwise."""

    institutions: int
    dimension: int
    bits: int
    quantise_s: float
    noise_s: float
    mask_s: float
    """All masks of one institution, check coordinates included."""
    per_mask_s: float
    """What one peer more costs in one step: mask key expanded, mask drawn and added."""
    answer_s: float
    """From checked request and noised integers to signed wire bytes, masks included."""
    client_s: float
    """Everything: request checked, quantised, noised, masked, signed, encoded."""
    sum_s: float
    """Coordinator: all n uploads checked and added, and the sum decoded."""
    session_s: float
    """All keys of a session checked and agreed, once a session."""
    upload_bytes: int
    request_overhead_bytes: int
    """The request without its adapter."""
    flower_per_mask_s: float
    """One peer in one step, as its client does it: key agreed, mask drawn and added."""
    flower_client_s: float
    """Quantise and mask, extrapolated to n masks from those timed."""
    flower_upload_bytes: int
    faster_per_mask: float
    """Flower's time for one mask over ours for one more."""
    faster_masking: float
    """Flower's time for all pairwise masks over ours for masking: vector copied, threads begun, masks applied."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one run of the benchmark."""

    machine: str
    cores: int
    repetitions: int
    costs: tuple[Cost, ...]


def measure(
    *, institutions: int, dimension: int, bits: int = 32, repetitions: int = 5, flower_masks: int = 5, uploads: int = 10
) -> Cost:
    """Time one setting; the coordinator on at most ``uploads`` uploads, in proportion."""
    server, sites, session_s = _open_session(institutions, dimension, bits)
    cohort, adapter = tuple(range(institutions)), bytes(4 * dimension)
    collecting, request = server.create_round_request(Step(0, 0), adapter=adapter, cohort=cohort, head=HEAD)
    gradient = np.random.default_rng(0).normal(0, 1, dimension).astype(np.float32)
    request_s, working = _timed(repetitions, lambda: sites[0].handle_round_request(request))
    quantise_s, integers = _timed(repetitions, lambda: np.rint(gradient * SCALE).astype(np.int64))
    noise_s, noise = _timed(repetitions, lambda: _rounded_gaussian(dimension))
    summand = from_integers(integers + noise, bits=working.terms.bits, cohort=institutions)
    keys = {peer: random_key() for peer in cohort[1:]}
    mask_s, _ = _timed(repetitions, lambda: masking.mask(summand, working.context, keys, place=0))
    answer_s, upload = _answer(working, integers + noise)
    sent = [upload, *(_answer(sites[i].handle_round_request(request), integers)[1] for i in cohort[1:uploads])]
    sum_s = _sum_time(collecting, sent) * institutions / len(sent)
    per_mask_s = _per_mask(summand.words.copy(), repetitions)
    flower_mask_s, flower_rest_s = _flower(gradient, masks=flower_masks)
    return Cost(
        institutions=institutions,
        dimension=dimension,
        bits=bits,
        quantise_s=quantise_s,
        noise_s=noise_s,
        mask_s=mask_s,
        per_mask_s=per_mask_s,
        answer_s=answer_s,
        client_s=request_s + quantise_s + noise_s + answer_s,
        sum_s=sum_s,
        session_s=session_s,
        upload_bytes=len(upload),
        request_overhead_bytes=len(request) - 4 * dimension,
        flower_per_mask_s=flower_mask_s,
        flower_client_s=flower_rest_s + institutions * flower_mask_s,
        flower_upload_bytes=8 * dimension,
        faster_per_mask=flower_mask_s / per_mask_s,
        faster_masking=flower_mask_s * (institutions - 1) / mask_s,
    )


def _open_session(n: int, dimension: int, bits: int) -> tuple[Open, list[Participant], float]:
    """Coordinator and institutions with a session made; seconds that one institution spent on its keys."""
    coordinator, identities = Identity.generate(), [Identity.generate() for _ in range(n)]
    manifest = Manifest(
        run="00" * 16,
        config=RunConfig(
            name="bench", rounds=10, privacy="none", acknowledge=PLAIN_WORDS, base=BaseModelConfig(path="bundled")
        ),
        base_digest=ZERO_DIGEST,
        adapter_digest=ZERO_DIGEST,
        dimension=dimension,
        coordinator=coordinator.public.hex(),
        roster=tuple(Member(name=f"site-{i:04}", key=who.public.hex()) for i, who in enumerate(identities)),
        privacy=PRIVACY,
        secure_aggregation=msgspec.convert({"minimum_cohort": 2, "colluders": 0, "bits": bits}, SecureAggregationTerms),
        code_version="bench",
    )
    name = manifest_digest(canonical_bytes(manifest))
    opening, invitation = aggregator.start(manifest, name, coordinator).create_open_session()
    waiting = []
    for who in identities:
        state, advert = participant.enrol(manifest, name, who).handle_open_session(invitation)
        waiting.append(state)
        opening = opening.handle_advert(advert)
    server, keys = opening.create_session_keys()
    start = time.perf_counter()
    sites: list[Participant] = [waiting[0].handle_session_keys(keys)]
    session_s = time.perf_counter() - start
    sites += [state.handle_session_keys(keys) for state in waiting[1:]]
    return server, sites, session_s


def _per_mask(words: Words, repetitions: int) -> float:
    """Seconds that one peer more costs: the difference between twenty and ten, divided by ten."""
    keys = [random_key() for _ in range(20)]

    def masks(count: int) -> None:
        masking.apply_masks(words, [(expand_key(key, info=HEAD), True) for key in keys[:count]])

    return (_timed(repetitions, lambda: masks(20))[0] - _timed(repetitions, lambda: masks(10))[0]) / 10


def _answer(working: Contributing, integers: NDArray[np.int64]) -> tuple[float, bytes]:
    start = time.perf_counter()
    summand = from_integers(integers, bits=working.terms.bits, cohort=len(working.context.cohort))
    _, upload = working.create_contribution(summand, head=HEAD)
    return time.perf_counter() - start, upload


def _sum_time(collecting: aggregator.Collecting, uploads: list[bytes]) -> float:
    """Check and add these uploads and decode what they add up to (which is uniform if some are missing)."""
    start = time.perf_counter()
    for upload in uploads:
        collecting = collecting.handle_contribution(upload)
    if not collecting.missing():
        total = collecting.create_sum()[1]
        total.words.view(f"<i{total.bits // 8}").astype(np.float64) / SCALE
    return time.perf_counter() - start


def _rounded_gaussian(n: int) -> NDArray[np.int64]:
    """Rounded Gaussian integers from an AES-256-CTR keystream (Box and Muller 1958): what a noise share costs."""
    words = np.frombuffer(aes_ctr_keystream(random_key().reveal(), bytes(16), 16 * -(-n // 2)), dtype="<u8")
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-64
    half = len(words) // 2
    radius = np.sqrt(-2 * np.log(uniform[:half])) * NOISE_DEVIATION
    angle = uniform[half:] * (2 * np.pi)
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]
    integers: NDArray[np.int64] = np.rint(values).astype(np.int64)
    return integers


def _flower(gradient: NDArray[np.float32], *, masks: int) -> tuple[float, float]:
    """Seconds for one of Flower's pairwise masks, and for all the rest of its client's masking step."""
    start = time.perf_counter()
    values = quantize([gradient.astype(np.float64)], FLOWER_CLIP, FLOWER_RANGE)
    rest_s = time.perf_counter() - start
    times, ours, theirs = [], generate_key_pairs()[0], generate_key_pairs()[1]
    for _ in range(masks):
        start = time.perf_counter()
        mask = pseudo_rand_gen(generate_shared_key(ours, theirs), FLOWER_MODULUS, [gradient.shape])
        values = parameters_addition(values, mask)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    parameters_mod(values, FLOWER_MODULUS)
    return min(times), rest_s + time.perf_counter() - start


def _timed(repetitions: int, action: Callable[[], T]) -> tuple[float, T]:
    """Least seconds and the last result."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - start)
    return min(times), result


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[3, 10, 100])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[100_000, 800_000, 10_000_000])
    parser.add_argument("--bits", type=int, choices=(32, 64), default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--flower-masks", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file; printed if absent")
    chosen = parser.parse_args(arguments)
    repetitions, masks = chosen.repetitions, chosen.flower_masks
    costs = tuple(
        measure(institutions=n, dimension=d, bits=chosen.bits, repetitions=repetitions, flower_masks=masks)
        for d in chosen.dimensions
        for n in chosen.cohorts
    )
    report = Report(machine=platform.machine(), cores=os.cpu_count() or 0, repetitions=repetitions, costs=costs)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if chosen.output is None:
        print(text.decode())  # noqa: T201 - the command's result
    else:
        chosen.output.write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
