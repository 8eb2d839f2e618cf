"""The other lenses of SPEX: parts of a prompt instead of parts of a model. Same responses, same decoders."""
