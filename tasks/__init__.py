"""The suite's seqio tasks; importing this registers them all."""
