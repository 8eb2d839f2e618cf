"""Decoders that stand alone (exact, linear, ProxySPEX), and the fits that several decoders share."""
