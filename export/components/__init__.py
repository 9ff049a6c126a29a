"""The modules that several families share: text and image encoders, decoders."""
