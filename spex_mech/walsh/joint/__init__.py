"""The joint decoder: several proxies, each judged where it was not fitted, stacked, and written as one polynomial."""
