"""Masks as values of a few integers and a seed, the codes that SPEX's masks are made of, and GF(2) beneath them."""
