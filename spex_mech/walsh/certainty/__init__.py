"""How sure: errors, q-values and stability of coefficients, from masks that had no part in finding their sets."""
