"""Secure aggregation: the coordinator learns the sum of the institutions' vectors and nothing else, even if it lies.

**Roles.** A coordinator (:mod:`.aggregator`) and n institutions (:mod:`.participant`), all with long-term Ed25519
keys pinned in a signed manifest. Both are state machines without I/O; the coordinator carries every message, so it
can read, drop, delay, replay and invent all of them, and is not trusted to carry them faithfully.

**Protocol.** All-or-nothing pairwise masking (the first half of Bonawitz et al. 2017; the idea is older, e.g. Ács and
Castelluccia 2011), without any step that takes a mask off:

1. *Session.* The coordinator opens session e. Institution i makes a fresh X25519 key, signs it over (run, e, i) and
   gets everybody's signed keys back. T is the hash of run, e and all keys; k_ij = HKDF-SHA256(X25519(i, j), salt = T,
   info = "darkroom/pair/1" ‖ min(i,j) ‖ max(i,j)). Then the X25519 secret is dropped.
2. *Step* = (round, attempt). The coordinator signs a request: step, global adapter, cohort U, dimension d, word size
   b. Each institution checks it against its manifest and its own policy, and computes c = SHA-256(T, step,
   SHA-256(adapter), U, d, b) and m_ij = HKDF-Expand(k_ij, "darkroom/mask/1" ‖ c).
3. It sends x_i ‖ 1…1 + Σ_{j>i} PRG(m_ij) − Σ_{j<i} PRG(m_ij) mod 2ᵇ, signed over c, where PRG is the AES-256-CTR
   keystream (counting from block 2) and x_i already holds its share of the differential-privacy noise. One message
   each way.
4. The sum of all |U| answers is the sum of all x_i. The trailing ones must sum to |U|; otherwise the step is void.

**If somebody drops out**, the step is void and the survivors answer attempt + 1 with a fresh sample, fresh noise and
fresh masks. Below the minimum cohort the run waits. Nobody ever reveals a share, seed or key of anybody, so no lie
about who dropped out can make them.

**Who learns what.**

=================  ==============================================================================================
coordinator        Σ x_i over U; who took part, and when. With up to t institutions on its side: the sum over the
                   other |U| − t. A void step gives it uniform words, unless its masks cancel, and then Σ x_i.
institution        the global adapters that it is sent, and who takes part.
network            sizes and times; uniform words. (Keys and signatures are public.)
=================  ==============================================================================================

**Assumptions.** X25519, HKDF-SHA256, AES-256 and Ed25519 are what they are believed to be (gap Diffie-Hellman, PRF,
PRP, unforgeability), SHA-256 is collision-resistant, the operating system's randomness is good, and at least two
institutions of U are honest. The manifest's keys belong to the institutions it names: compare fingerprints by another
channel, or a coordinator fills the roster with itself.

**What a lie gets.** Another adapter, cohort, shape, step or key list shown to some sites changes their c or T, so
that masks between the two groups do not cancel: each group's sum stays uniform, and the honest coordinator's check
fails. Requests are signed, so two of them for one step are proof. An old step is refused by number, and could not
reuse a mask: a session's mask keys are handed out once (:class:`.keys.PairwiseKeys`), its X25519 secret agrees once
(:class:`.keys.SessionSecret`), and both die with the process.

**Not protected.**

* *Poisoning and disruption.* An institution may send any x_i, and any faulty vector voids a step without showing
  whose it was; the check coordinates catch accidents and split views, not malice. Masks hide outliers from everybody,
  the coordinator included.
* *The sum.* A lying coordinator may publish another adapter than the sum gives. It may also void a complete step and
  ask again: each answer is a separate release of a fresh sample, which is why each is charged to the site's ledger
  whether or not it was used. The sum itself protects nobody without differential privacy.
* *A colluding majority.* If all of U but one collude with the coordinator, that one's x_i is theirs; its noise
  share alone then protects it.
* *Traffic analysis.* Who takes part, when, and how long it takes is visible.
* *A steward's memory.* Whoever reads it during a session has that session's pairwise keys, so also the masks of its
  earlier steps. Open a new session from time to time: the old keys are then gone.
* *Copies of a live process.* A restored snapshot of a steward's memory repeats its masks. (A fork is refused.)
* *Quantum computers* that record traffic now: X25519 is not post-quantum. The inputs carry their noise even then.

**Compared with Bonawitz et al. 2017** (CCS, "Practical secure aggregation for privacy-preserving machine learning"):
theirs survives drop-outs within a round by Shamir shares of every mask seed, at four round trips, a self-mask and an
unmasking step that needs a consistency round against a coordinator that lies about drop-outs. Here a drop-out costs a
repeated round, and that whole class of attack has nothing to attack. The trade suits tens of institutions, not
thousands of phones.

**Compared with Flower's SecAgg+** (``flwr`` 1.41, legacy workflow; Bell et al. 2020, CCS, "Secure single-server
aggregation with (poly)logarithmic overhead"): it folds a shared secret into a 32-bit seed of a Mersenne Twister, does
not sign keys, answers an unmasking request that lists one node as both alive and dropped, sends example counts in the
clear, and takes 8 bytes a parameter and four stages. Here masks have 256-bit keys, every message is signed, and a
parameter takes 4 bytes.

A vector's way: :mod:`.ring` → :mod:`.masking` → the sum; :mod:`.keys` holds who is who; :mod:`.messages` the wire.
"""

from __future__ import annotations
