"""The yardstick: Frank-Wolfe theory that runs. Exact, float64, on the CPU; it knows nothing of `fwlora`.

    sets          where one optimises: lmo, support, contains, diameter, radius, sample
    problems      what one optimises: testbeds with certified constants
    step_sizes    how far one goes along each vertex
    frank_wolfe   Algorithm 2 of the paper and its variants; `chain` is Algorithm 1, what COLA runs
    bounds        what is guaranteed: one theorem per file, each checks itself on a run
    certificates  why one may believe it: exact identities in fractions, and worst cases by semidefinite programming

Conventions, fixed once: ``lmo(G) = argmin_{V in K} <G, V>``; ``gap = <G, W> - <G, lmo(G)> >= 0``; iterations count from 1;
norms are Frobenius unless a name says otherwise.
"""
