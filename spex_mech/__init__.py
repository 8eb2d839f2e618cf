"""Find which attention heads and MLP neurons of a transformer matter together."""
