"""The yardstick: Frank-Wolfe theory that runs. Exact, float64, on the CPU; it knows nothing of `fwlora`.

Its rooms::

    sets          where one optimises: lmo, support, contains, diameter, radius, sample
    problems      what one optimises: testbeds with certified constants
    step_sizes    how far one goes towards each vertex
    oracles       who finds the vertex: exactly, roughly, by Lanczos, from memory, one layer at a time
    gradients     what the oracle is asked with: the gradient, a noisy one, a minibatch's
    frank_wolfe   Algorithm 2 of the paper; `active_set` has away and pairwise steps, `corrections` what may follow a step
    chain         Algorithm 1, what COLA runs; `links` says how a link is found
    bounds        what is guaranteed: one theorem per file, each checks itself on a run
    certificates  why one may believe it: exact identities in fractions, and worst cases by semidefinite programming

Conventions, fixed once: ``lmo(G) = argmin_{V in K} <G, V>``; ``gap = <G, W> - <G, lmo(G)> >= 0``; iterations count from 1;
norms are Frobenius unless a name says otherwise.
"""
