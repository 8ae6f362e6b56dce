"""The site's own rules for runs, in its own TOML file; a manifest that breaks one is refused with every reason at once.

A policy can only narrow what a manifest asks. ε is not taken from the manifest's word: the site's accountant computes
it from the manifest's noise, sampling rate and rounds.

A run's four figures rest on the other institutions' being real: noise of institutions that the coordinator invented is
known to it, or was never added. So a policy names the institutions, and then the figure against the coordinator with t
of them holds; or it says in words that any will do, and then the site's own share of the noise alone is sure to be in a
sum, whoever looks at it. Budgets of such a site are charged by that share: charged by the smaller figure, they would be
overspent by the first coordinator that lies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from client.governance.ledger import Account, Budget, Event
from common import bounds  # noqa: TC001 - msgspec reads annotations at run time
from common.config import PLAIN_WORDS, Config, Digest, parse_config, read_toml
from common.crypto.primitives import check_identity
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import BadKey, DarkroomError, PolicyRefusal, TooManyUnits
from common.manifest.manifest import PublicKeyHex  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.governance.ledger import BudgetAccountant
    from common.config import PrivacyConfig
    from common.manifest.manifest import Manifest, PrivacyTerms

ANY_INSTITUTION: Final = (
    "any: a roster that the coordinator invented would leave this site its own share of the noise alone"
)
"""What a policy says instead of naming the institutions."""


class PrivacyLimits(Config, frozen=True, kw_only=True):
    """The most that may become known about one privacy unit of this site."""

    epsilon_per_run: bounds.EpsilonLimit
    delta_per_run: bounds.Delta
    epsilon_lifetime: bounds.EpsilonLimit
    """Over all runs that ever use the same collection."""
    delta_lifetime: bounds.Delta
    units: Annotated[tuple[Literal["image", "subject"], ...], Meta(min_length=1)]
    """What counts as one unit: one of them, not ``image`` where a person has several pictures."""
    rely_on_secure_aggregation: bool = True
    """False, as it must be where any institution will do: budgets are charged as if everybody else colluded, by this
    site's own noise share alone."""

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if self.epsilon_per_run > self.epsilon_lifetime:
            yield f"epsilon_per_run: {self.epsilon_per_run} is above epsilon_lifetime, {self.epsilon_lifetime}"
        if self.delta_per_run > self.delta_lifetime:
            yield f"delta_per_run: {self.delta_per_run} is above delta_lifetime, {self.delta_lifetime}"
        if len(set(self.units)) > 1:
            # a run that protects pictures costs a subject more than its ε, by as many pictures as the subject has
            yield f"units: wanted one of them, got {', '.join(self.units)}: their costs do not add up in one budget"


class SitePolicy(Config, frozen=True, kw_only=True):
    """What this site takes part in."""

    coordinators: tuple[PublicKeyHex, ...]
    """Ed25519 keys, compared with their owners by another channel. None: no run is taken part in."""
    base_digests: tuple[Digest, ...]
    """None: no run is taken part in."""
    adapter_kinds: Annotated[tuple[Literal["B", "AB", "core"], ...], Meta(min_length=1)] = ("B", "core")
    minimum_cohort: bounds.Cohort = 3
    """Fewest institutions, this one included, in any sum that it adds to."""
    colluders: bounds.Colluders = 1
    """How many other institutions are assumed to work with the coordinator."""
    institutions: tuple[PublicKeyHex, ...] = ()
    """Keys of institutions known to be real, this one included: compared with their owners by another channel than the
    coordinator's. A roster with any other is refused."""
    any_institution: str = ""
    """To name none, and take part with whatever roster a coordinator shows: the sentence :data:`ANY_INSTITUTION`."""
    privacy: PrivacyLimits
    non_private: str = ""
    """To take part in runs without privacy: the sentence :data:`common.config.PLAIN_WORDS`."""
    repeatable: str = ""
    """To take part in tests whose noise others can compute: :data:`common.crypto.randomness.REPEATABLE_WORDS`."""

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if self.minimum_cohort < self.colluders + 2:
            yield f"minimum_cohort: wanted at least colluders + 2 = {self.colluders + 2}, got {self.minimum_cohort}"
        if self.non_private not in {"", PLAIN_WORDS}:
            yield f'non_private: wanted "{PLAIN_WORDS}" or nothing, got {self.non_private!r}'
        if self.repeatable not in {"", REPEATABLE_WORDS}:
            yield f'repeatable: wanted "{REPEATABLE_WORDS}" or nothing, got {self.repeatable!r}'
        yield from self._any_faults()
        for name, keys in (("coordinators", self.coordinators), ("institutions", self.institutions)):
            for key in keys:
                try:
                    check_identity(bytes.fromhex(key))
                except BadKey as error:
                    yield f"{name}: {key}: {error}"

    def _any_faults(self) -> Iterator[str]:
        if self.any_institution not in {"", ANY_INSTITUTION}:
            yield f'any_institution: wanted "{ANY_INSTITUTION}" or nothing, got {self.any_institution!r}'
        if not self.any_institution:
            return
        if self.institutions:
            yield f"any_institution: says that any will do, and institutions names {len(self.institutions)}; give one"
        if self.privacy.rely_on_secure_aggregation:
            yield (
                "privacy.rely_on_secure_aggregation: wanted false, because any_institution lets a coordinator invent "
                "the others: their noise is then no protection, and budgets have to be charged without it"
            )

    def unfinished(self) -> tuple[str, ...]:
        """What is still to be filled in: until then every run is refused."""
        lists = {"coordinators": self.coordinators, "base_digests": self.base_digests}
        empty = [f"{key}: empty, so every run would be refused" for key, value in lists.items() if not value]
        if not self.institutions and not self.any_institution:
            empty.append(_NOBODY_NAMED)
        return tuple(empty)

    def account(self, collection: str, *, private: bool) -> Account:
        """The ledger limits of one collection; without limit for runs that are allowed to have no secret noise."""
        limits = self.privacy
        allowed = self.non_private == PLAIN_WORDS or self.repeatable == REPEATABLE_WORDS
        unlimited = not private and allowed
        return Account(
            collection=collection,
            lifetime=Budget(epsilon=math.inf if unlimited else limits.epsilon_lifetime, delta=limits.delta_lifetime),
            per_run=Budget(epsilon=math.inf if unlimited else limits.epsilon_per_run, delta=limits.delta_per_run),
        )

    def figure_that_holds(self) -> str:
        """Which of a run's figures this site may count on, in words."""
        if self.any_institution:
            return (
                "any institution will do, so the fallback figure is the one that holds, against everybody; budgets are "
                "charged by it"
            )
        if not self.institutions:
            return "no institution is named, so every run is refused"
        charged = "" if self.privacy.rely_on_secure_aggregation else "; budgets are charged by the fallback figure"
        return f"{len(self.institutions)} institutions are named, so the figures hold that are stated{charged}"


_NOBODY_NAMED: Final = (
    "institutions: empty, so every run would be refused; name them, this one included (darkroom-client approve shows a "
    f'run\'s, with the line to write), or set any_institution = "{ANY_INSTITUTION}"'
)


def read_policy(path: Path) -> SitePolicy:
    """Read the site's policy file.

    Raises:
        ConfigError: Missing or not TOML.
        ConfigErrors: Every fault in it.

    """
    return parse_config(read_toml(path), SitePolicy, source=str(path))


def contribution_event(manifest: Manifest, policy: SitePolicy, *, cohort: int) -> Event:
    """What one contribution costs this site in the view that its policy assumes.

    With secure aggregation the coordinator and t colluders face the noise of the other |U| − t, multiplier z; each
    share alone is z / √(|U| − t). Without it the site adds noise of multiplier z by itself. Without privacy there is
    none, and noise that others can compute is none.

    Args:
        manifest: The run.
        policy: The site's.
        cohort: |U|, institutions in this step's sum.

    """
    terms = manifest.privacy
    if terms is None or _is_repeatable(manifest):
        return Event(relation="none", noise_multiplier=0.0, sampling_rate=1.0)
    noise = terms.noise_multiplier
    if manifest.secure_aggregation is not None and not policy.privacy.rely_on_secure_aggregation:
        noise /= math.sqrt(max(cohort - manifest.secure_aggregation.colluders, 1))
    return Event(
        relation=terms.relation,
        noise_multiplier=noise,
        sampling_rate=terms.sampling_rate,
        slack=terms.slack,
        lost=terms.lost,
    )


def _is_repeatable(manifest: Manifest) -> bool:
    privacy = manifest.config.privacy
    return privacy != "none" and not privacy.is_private


def check_coordinator(manifest: Manifest, policy: SitePolicy) -> None:
    """Refuse a stranger's manifest, without working anything out: anybody can sign settings that keep one busy.

    Its institutions are not looked at: who is in the roster is what a person has to see before they can be named.

    Raises:
        PolicyRefusal: A coordinator that the policy does not name.

    """
    if reasons := tuple(_coordinator_reasons(manifest, policy)):
        raise PolicyRefusal(manifest.config.name, reasons)


def check_size(units: int, config: PrivacyConfig) -> None:
    """Refuse a run whose cap on samples was not worked out for so many units: more would reach it, unaccounted for.

    To train on as many as are allowed is no way out: a choice that is filled up to the limit takes another unit in for
    one that is taken away, and add-or-remove becomes replace, with twice the sensitivity.

    Raises:
        TooManyUnits: How many are allowed, and never how many there are.

    """
    if units > (most := config.largest_site or config.population):
        raise TooManyUnits(
            f"this institution has more than {most} privacy units, the most that the run allows one; have the "
            "coordinator draft it with a larger privacy.largest_site"
        )


def check_manifest(manifest: Manifest, policy: SitePolicy, *, accountant: BudgetAccountant) -> None:
    """Allow a manifest, whose signature and canonical form are checked, or say why not.

    Raises:
        PolicyRefusal: With every reason.

    """
    if reasons := refusal_reasons(manifest, policy, accountant=accountant):
        raise PolicyRefusal(manifest.config.name, reasons)


def refusal_reasons(manifest: Manifest, policy: SitePolicy, *, accountant: BudgetAccountant) -> tuple[str, ...]:
    """Every rule of the policy that the manifest breaks; none if it is allowed."""
    return (
        *_coordinator_reasons(manifest, policy),
        *_roster_reasons(manifest, policy),
        *_model_reasons(manifest, policy),
        *_aggregation_reasons(manifest, policy),
        *_privacy_reasons(manifest, policy, accountant),
    )


def _coordinator_reasons(manifest: Manifest, policy: SitePolicy) -> Iterator[str]:
    if manifest.coordinator not in policy.coordinators:
        # not its key: whoever could copy that from here into the policy would compare nothing
        yield (
            "its coordinator's key is not in policy.coordinators; write there the key that you compared with the "
            "coordinator by telephone"
        )


def _roster_reasons(manifest: Manifest, policy: SitePolicy) -> Iterator[str]:
    if policy.any_institution:
        return
    for member in manifest.roster:
        if member.key not in policy.institutions:
            yield f"institution {member.name}: its key is not in policy.institutions; have it read its fingerprint out"


def _model_reasons(manifest: Manifest, policy: SitePolicy) -> Iterator[str]:
    if manifest.base_digest not in policy.base_digests:
        yield f"base model {manifest.base_digest} is not in policy.base_digests"
    if manifest.config.adapter.train not in policy.adapter_kinds:
        allowed = ", ".join(policy.adapter_kinds)
        yield f"adapter kind {manifest.config.adapter.train!r}; policy.adapter_kinds allows {allowed}"


def _aggregation_reasons(manifest: Manifest, policy: SitePolicy) -> Iterator[str]:
    terms = manifest.secure_aggregation
    if terms is None:
        if manifest.privacy is not None and policy.privacy.rely_on_secure_aggregation:
            yield "no secure aggregation, on which policy.privacy.rely_on_secure_aggregation counts"
        return
    if terms.minimum_cohort < policy.minimum_cohort:
        yield f"sums of {terms.minimum_cohort} institutions; policy.minimum_cohort is {policy.minimum_cohort}"
    if terms.colluders < policy.colluders:
        yield f"noise for {terms.colluders} colluders; policy.colluders assumes {policy.colluders}"


def _privacy_reasons(manifest: Manifest, policy: SitePolicy, accountant: BudgetAccountant) -> Iterator[str]:
    terms, limits = manifest.privacy, policy.privacy
    if terms is None:
        if policy.non_private != PLAIN_WORDS:
            yield f'a run without privacy; policy.non_private would have to say "{PLAIN_WORDS}"'
        return
    if terms.unit not in limits.units:
        yield f"privacy unit {terms.unit!r}; policy.privacy.units allows {', '.join(limits.units)}"
    if terms.delta > limits.delta_per_run:
        yield f"δ = {terms.delta:.3g}; policy.privacy.delta_per_run is {limits.delta_per_run:.3g}"
    if _is_repeatable(manifest):
        # the seed stands in the manifest: whoever wrote it takes the noise off every sum
        if policy.repeatable != REPEATABLE_WORDS:
            yield f'noise that others can compute; policy.repeatable would have to say "{REPEATABLE_WORDS}"'
        return
    yield from _epsilon_reasons(manifest, terms, policy, accountant)


def _epsilon_reasons(
    manifest: Manifest, terms: PrivacyTerms, policy: SitePolicy, accountant: BudgetAccountant
) -> Iterator[str]:
    """Reasons from the ε that this site computes itself, for its own view and for the manifest's promise."""
    rounds = manifest.config.rounds
    own = contribution_event(manifest, policy, cohort=len(manifest.roster))
    promised = msgspec.structs.replace(own, noise_multiplier=terms.noise_multiplier, count=rounds)
    own = msgspec.structs.replace(own, count=rounds)
    try:
        epsilon = accountant.epsilon([own], delta=policy.privacy.delta_per_run)
        stated = accountant.epsilon([promised], delta=terms.delta)
    except DarkroomError as error:
        yield f"the accountant does not know this run's mechanism: {error}"
        return
    if not epsilon <= (allowed := policy.privacy.epsilon_per_run):
        yield f"ε = {epsilon:.4g} for this site's view; policy.privacy.epsilon_per_run is {allowed:.4g}"
    if not stated <= terms.epsilon:
        yield f"the manifest promises ε = {terms.epsilon:.4g}, but its own noise gives {stated:.4g}"
