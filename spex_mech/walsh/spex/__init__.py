"""SPEX: coded masks → bins → candidate sets → peeling → refit."""
