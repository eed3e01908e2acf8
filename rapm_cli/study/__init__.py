"""Tables of distillations, for `rapm eval --study`."""
