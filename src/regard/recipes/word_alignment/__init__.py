"""Word alignment by cross-attention, measured on verses that people aligned."""
