"""Differential privacy from the gradient of one unit to the (ε, δ) that is printed.

A *privacy unit* is one image, or all images of one subject. One value passes through one function per step, and each
function takes only what the step before it gave::

    sample_units     secret Poisson sample of the institution's units, at most ``cap`` of them     (sampling)
    clipped_sum      → ClippedSum: one gradient per unit, clipped to norm C, summed                (clipping)
    quantise         → QuantisedSum: the same on an integer lattice                                (mechanisms)
    add_noise        → NoisedShare: with this institution's share of the noise                     (mechanisms)
    dequantise       the sum over all institutions, in units of the gradient                       (mechanisms)
    Rounds, epsilon  what was done, and the (ε, δ) that it costs                                   (accounting)
    state            who learns how much, in words                                                 (statements)
    private_plan     all of these numbers from a run's public settings                             (run_plan)
"""
