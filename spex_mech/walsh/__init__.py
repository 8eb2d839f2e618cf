"""Boolean functions: masks, their transforms, and sparse polynomials recovered from few of them.

Nothing in this folder has heard of a model. It takes a Boolean matrix ``keep [mask, component]`` and numbers
``values [mask, output]``, and gives back a `Spectrum`. The conventions, for the whole package:

- ``keep[m, i]`` is True where component i is untouched under mask m, False where it is ablated.
- ``x_i = +1`` kept, ``-1`` ablated; ``f(x) = Σ_S F(S) Π_{i∈S} x_i`` (Walsh). Over F2 the vector is the ablated bits
  ``m = 1 - keep``, so that ``Π_{i∈S} x_i = (-1)^{<m, S>}``. The Banzhaf value of i is ``2 F({i})``.
- Each basis is a product of one function a component, written in the keep bit ``k ∈ {0, 1}``:

  ========  ====================  =========================================================================
  basis     φ(k)                  the coefficient of S
  ========  ====================  =========================================================================
  walsh     2k - 1                mean effect over fair coins; orthonormal under keep-probability 1/2
  biased    (k - q) / √(q(1-q))   the same for keep-probability q; orthonormal under it
  mobius    k                     Möbius over kept sets; the origin is the model with everything ablated
  knockout  1 - k                 Möbius over ablated sets; the origin is the intact model; S's joint-knockout
  interaction
  ========  ====================  =========================================================================

- Two components, by hand. AND (both needed, f = k1 k2): F({1,2}) = +1/4, F({1}) = F({2}) = +1/4, knockout({1,2}) = +1.
  OR (either is enough): F({1,2}) = -1/4, F({1}) = F({2}) = +1/4, knockout({1,2}) = -1.
- Absent is not zero: a set outside the recovered support has no coefficient, and asking for it says so.
"""
