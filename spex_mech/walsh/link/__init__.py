"""Links: an increasing function between the polynomial and what was measured, fitted and chosen."""
