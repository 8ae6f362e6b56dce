"""A site's policy narrows; every reason is told at once; ε is computed and not believed."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from client.governance.ledger import BudgetAccountant, Event
from client.governance.policy import (
    ANY_INSTITUTION,
    PrivacyLimits,
    SitePolicy,
    check_coordinator,
    check_manifest,
    contribution_event,
    read_policy,
)
from common.config import PLAIN_WORDS, AdapterConfig, BaseModelConfig, PrivacyConfig, RunConfig, ServerConfig
from common.crypto.primitives import Identity, Secret
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import ConfigError, ConfigErrors, PolicyRefusal
from common.manifest.manifest import Manifest, Member, PrivacyTerms, SecureAggregationTerms, canonical_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ZERO, ONE = "sha256:" + "0" * 64, "sha256:" + "1" * 64
COORDINATOR = Identity(Secret(b"c" * 32)).public.hex()
SITES = tuple(Identity(Secret(bytes([n]) * 32)).public.hex() for n in range(1, 6))

TOML = f"""
coordinators = ["{COORDINATOR}"]
base_digests = ["{ZERO}"]
adapter_kinds = ["B", "core"]
minimum_cohort = 3
colluders = 1
institutions = [{", ".join(f'"{each}"' for each in SITES)}]

[privacy]
epsilon_per_run = 8.0
delta_per_run = 1e-5
epsilon_lifetime = 20.0
delta_lifetime = 1e-4
units = ["subject"]
"""


class Simple(BudgetAccountant):
    """ε = √(Σ count) · rate / noise, ∞ beyond δ: an accountant whose answers a test can work out."""

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        if any(event.sampling_rate == 0.25 for event in events):
            raise ConfigError("a rate of 0.25 is unknown to this accountant")
        if sum(event.count * event.lost for event in events) >= delta:
            return math.inf
        return math.sqrt(sum(event.count * (event.sampling_rate / event.noise_multiplier) ** 2 for event in events))


def policy(**changes: Any) -> SitePolicy:
    limits = PrivacyLimits(
        epsilon_per_run=8.0, delta_per_run=1e-5, epsilon_lifetime=20.0, delta_lifetime=1e-4, units=("subject",)
    )
    privacy = {key.removeprefix("privacy_"): changes.pop(key) for key in list(changes) if key.startswith("privacy_")}
    fields: dict[str, Any] = {
        "coordinators": (COORDINATOR,),
        "base_digests": (ZERO,),
        "institutions": SITES,
        "privacy": msgspec.structs.replace(limits, **privacy),
    }
    return SitePolicy(**{**fields, **changes})


def manifest(**changes: Any) -> Manifest:
    """100 rounds at rate 0.5 and noise 1: ε = 5 by the accountant above."""
    privacy = {
        "unit": "subject",
        "epsilon": 6.0,
        "delta": 1e-5,
        "clip": 1.0,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.0,
        "maximum_units": 100,
    }
    secure: dict[str, Any] = {"minimum_cohort": 3, "colluders": 1}
    for key in list(changes):
        if key.startswith("privacy_"):
            privacy[key.removeprefix("privacy_")] = changes.pop(key)
        elif key.startswith("secure_") and key != "secure_aggregation":
            secure[key.removeprefix("secure_")] = changes.pop(key)
    fields: dict[str, Any] = {
        "run": "ab" * 16,
        "config": RunConfig(
            name="lungs", rounds=100, privacy="none", acknowledge=PLAIN_WORDS, base=BaseModelConfig(path="bundled")
        ),
        "base_digest": ZERO,
        "adapter_digest": ONE,
        "dimension": 10,
        "coordinator": COORDINATOR,
        "roster": tuple(Member(name=f"site-{i}", key=key) for i, key in enumerate(SITES)),
        "privacy": PrivacyTerms(**privacy),
        "secure_aggregation": None if "privacy" in changes else SecureAggregationTerms(**secure),
        "code_version": "0.1",
    }
    made = Manifest(**{**fields, **changes})
    canonical_bytes(made)
    return made


def reasons(made: Manifest, rules: SitePolicy) -> tuple[str, ...]:
    with pytest.raises(PolicyRefusal) as caught:
        check_manifest(made, rules, accountant=Simple())
    assert "lungs" in str(caught.value)
    assert all(reason in str(caught.value) for reason in caught.value.reasons)
    return caught.value.reasons


def test_a_manifest_within_the_policy_is_allowed() -> None:
    check_manifest(manifest(), policy(), accountant=Simple())
    check_manifest(manifest(), policy(institutions=SITES), accountant=Simple())


@pytest.mark.parametrize(
    ("made", "rules", "word"),
    [
        (manifest(), policy(coordinators=(SITES[0],)), "policy.coordinators"),
        (manifest(), policy(institutions=SITES[1:]), "site-0"),
        (manifest(base_digest=ONE), policy(), "policy.base_digests"),
        (
            manifest(config=msgspec.structs.replace(manifest().config, adapter=AdapterConfig(train="AB"))),
            policy(),
            "policy.adapter_kinds",
        ),
        (manifest(), policy(minimum_cohort=4), "policy.minimum_cohort"),
        (manifest(), policy(colluders=2, minimum_cohort=3), "policy.colluders"),
        (manifest(secure_aggregation=None), policy(), "rely_on_secure_aggregation"),
        (manifest(privacy_unit="image"), policy(), "policy.privacy.units"),
        (manifest(privacy_delta=2e-5), policy(), "policy.privacy.delta_per_run"),
        (manifest(), policy(privacy_epsilon_per_run=4.9), "policy.privacy.epsilon_per_run"),
        (manifest(privacy_epsilon=4.9), policy(), "promises ε = 4.9, but its own noise gives 5"),
        (manifest(privacy_sampling_rate=0.25), policy(), "does not know this run's mechanism"),
        (manifest(privacy_lost=9.9e-8, privacy_delta=9.8e-6), policy(), "promises"),
        (manifest(privacy=None), policy(), "a run without privacy"),
    ],
)
def test_each_rule_refuses_with_one_reason(made: Manifest, rules: SitePolicy, word: str) -> None:
    found = reasons(made, rules)
    assert len(found) == 1, found
    assert word in found[0]


def test_every_reason_is_told_at_once() -> None:
    made = manifest(base_digest=ONE, privacy_unit="image", privacy_delta=2e-5, privacy_noise_multiplier=0.5)
    rules = policy(coordinators=(SITES[0],), minimum_cohort=4, institutions=SITES[2:])
    found = reasons(made, rules)
    assert len(found) == 9


def test_a_strangers_key_is_not_told_where_it_could_be_copied_into_the_policy() -> None:
    told = "\n".join(reasons(manifest(), policy(coordinators=(SITES[0],), institutions=SITES[2:])))
    assert "by telephone" in told
    assert not re.search(r"[0-9a-f]{64}", told)


@pytest.mark.parametrize("epsilon", [5.0, math.nextafter(5.0, 0)])
def test_the_limit_itself_is_allowed(epsilon: float) -> None:
    rules = policy(privacy_epsilon_per_run=epsilon)
    if epsilon == 5.0:
        check_manifest(manifest(), rules, accountant=Simple())
    else:
        reasons(manifest(), rules)


def test_an_epsilon_that_is_not_a_number_is_refused() -> None:
    class Broken(BudgetAccountant):
        def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
            del events, delta
            return math.nan

    with pytest.raises(PolicyRefusal) as caught:
        check_manifest(manifest(), policy(), accountant=Broken())
    assert len(caught.value.reasons) == 2


def test_a_run_without_privacy_needs_the_words() -> None:
    check_manifest(manifest(privacy=None), policy(non_private=PLAIN_WORDS), accountant=Simple())
    reasons(manifest(privacy=None), policy(non_private="yes"))


def test_a_site_that_relies_on_nobody_counts_its_own_share() -> None:
    """Five institutions, one colluder: a share has a quarter of the variance, so twice the ε."""
    alone = policy(privacy_rely_on_secure_aggregation=False)
    assert contribution_event(manifest(), alone, cohort=5).noise_multiplier == 0.5
    assert contribution_event(manifest(), alone, cohort=3).noise_multiplier == pytest.approx(1 / math.sqrt(2))
    assert "ε = 10" in reasons(manifest(), alone)[0]
    check_manifest(
        manifest(), policy(privacy_rely_on_secure_aggregation=False, privacy_epsilon_per_run=10.0), accountant=Simple()
    )
    plain = manifest(secure_aggregation=None)
    check_manifest(plain, alone, accountant=Simple())
    assert contribution_event(plain, alone, cohort=5).noise_multiplier == 1.0


def test_a_contribution_costs_what_the_manifest_says() -> None:
    made = manifest(privacy_lost=1e-12)
    expected = Event(relation="add_remove_one", noise_multiplier=1.0, sampling_rate=0.5, lost=1e-12)
    assert contribution_event(made, policy(), cohort=3) == expected
    bare = contribution_event(manifest(privacy=None), policy(), cohort=3)
    assert (bare.noise_multiplier, bare.count) == (0.0, 1)


def test_the_ledger_limits_come_from_the_policy() -> None:
    account = policy().account("scans", private=True)
    assert (account.lifetime.epsilon, account.lifetime.delta) == (20.0, 1e-4)
    assert (account.per_run.epsilon, account.per_run.delta) == (8.0, 1e-5)
    assert policy().account("scans", private=False).lifetime.epsilon == 20.0
    allowed = policy(non_private=PLAIN_WORDS)
    assert math.isinf(allowed.account("scans", private=False).lifetime.epsilon)
    assert math.isinf(allowed.account("scans", private=False).per_run.epsilon)
    assert allowed.account("scans", private=True).lifetime.epsilon == 20.0


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TOML)
    assert read_policy(path) == policy()


def test_a_policy_is_unfinished_until_it_names_institutions_or_says_that_any_will_do() -> None:
    """An empty list took part with a roster that the coordinator had made up, and nobody was asked."""
    assert policy().unfinished() == ()
    (missing,) = policy(institutions=()).unfinished()
    assert "institutions: empty" in missing
    assert ANY_INSTITUTION in missing
    assert len(reasons(manifest(), policy(institutions=()))) == len(SITES)
    said = policy(institutions=(), any_institution=ANY_INSTITUTION, privacy_rely_on_secure_aggregation=False)
    assert (said.unfinished(), list(said.faults())) == ((), [])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"institutions": (), "any_institution": "any", "privacy_rely_on_secure_aggregation": False}, 'wanted "any: a'),
        ({"any_institution": ANY_INSTITUTION, "privacy_rely_on_secure_aggregation": False}, "give one"),
        ({"institutions": (), "any_institution": ANY_INSTITUTION}, "rely_on_secure_aggregation: wanted false"),
        ({"institutions": (*SITES, "00" * 32)}, "small order"),
        ({"institutions": (*SITES, "f0" + "ff" * 31)}, "pass for two"),
        ({"coordinators": ("f0" + "ff" * 31,)}, "pass for two"),
    ],
)
def test_any_institution_is_said_word_for_word_and_pays_for_it(changes: dict[str, Any], word: str) -> None:
    (fault,) = policy(**changes).faults()
    assert word in fault


def test_an_invented_roster_is_allowed_at_the_price_of_the_sites_own_share_alone() -> None:
    """ε = 5 by the promise for n − t = 4 honest institutions, and twice that by one share of the four."""
    any_one: dict[str, Any] = {
        "institutions": (),
        "any_institution": ANY_INSTITUTION,
        "privacy_rely_on_secure_aggregation": False,
    }
    (reason,) = reasons(manifest(), policy(**any_one))
    assert "ε = 10" in reason
    rules = policy(**any_one, privacy_epsilon_per_run=10.5)
    check_manifest(manifest(), rules, accountant=Simple())
    assert contribution_event(manifest(), rules, cohort=5).noise_multiplier == pytest.approx(0.5)
    assert contribution_event(manifest(), policy(), cohort=5).noise_multiplier == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "5 institutions are named, so the figures hold that are stated"),
        ({"privacy_rely_on_secure_aggregation": False}, "charged by the fallback figure"),
        ({"institutions": ()}, "every run is refused"),
        (
            {
                "institutions": (),
                "any_institution": ANY_INSTITUTION,
                "privacy_rely_on_secure_aggregation": False,
            },
            "the fallback figure is the one that holds",
        ),
    ],
)
def test_a_policy_says_which_figure_holds(changes: dict[str, Any], words: str) -> None:
    assert words in policy(**changes).figure_that_holds()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"epsilon_per_run = 8.0": "epsilon_per_run = 30.0", "delta_per_run = 1e-5": "delta_per_run = 1e-3"},
            ("privacy.epsilon_per_run", "privacy.delta_per_run"),
        ),
        (
            {"minimum_cohort = 3": "minimum_cohort = 2", "colluders = 1": 'colluders = 1\nnon_private = "yes"'},
            ("minimum_cohort", "non_private"),
        ),
    ],
)
def test_the_faults_of_a_policy_file_are_told_together(
    tmp_path: Path, changes: dict[str, str], words: tuple[str, ...]
) -> None:
    path = tmp_path / "policy.toml"
    text = TOML
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(ConfigErrors) as caught:
        read_policy(path)
    assert all(word in str(caught.value) for word in words)
    assert len(caught.value.faults) == len(words)


def test_a_missing_policy_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_policy(tmp_path / "missing.toml")


def test_noise_that_others_can_compute_is_refused_unless_the_policy_says_so_in_words() -> None:
    """A coordinator that writes the seed into the manifest could take the noise off again."""
    config = RunConfig(
        name="lungs",
        rounds=100,
        privacy=PrivacyConfig(
            epsilon=6.0, delta=1e-5, clip=1.0, population=100, sampling_rate=0.5, repeatable=REPEATABLE_WORDS
        ),
        base=BaseModelConfig(path="bundled"),
        server=ServerConfig(minimum_institutions=3),
    )
    made = manifest(config=config)
    (reason,) = reasons(made, policy())
    assert "policy.repeatable" in reason
    said = policy(repeatable=REPEATABLE_WORDS)
    check_manifest(made, said, accountant=Simple())
    assert contribution_event(made, said, cohort=3).noise_multiplier == 0  # the ledger books what it is: no noise
    assert math.isinf(said.account("scans", private=False).lifetime.epsilon)
    assert math.isfinite(said.account("scans", private=True).lifetime.epsilon)
    assert list(policy(repeatable="yes").faults())


def test_a_stranger_is_refused_without_an_accountant() -> None:
    check_coordinator(manifest(), policy())
    check_coordinator(manifest(), policy(institutions=()))  # whoever is in the roster, a person has to see it first
    with pytest.raises(PolicyRefusal, match="lungs"):
        check_coordinator(manifest(), policy(coordinators=(SITES[0],)))


def test_budgets_of_pictures_and_of_subjects_are_not_mixed() -> None:
    assert not list(policy().privacy.faults())
    (fault,) = policy(privacy_units=("image", "subject")).privacy.faults()
    assert "units" in fault
