"""Everything of a run that only several processes or GPUs need; `wing.wing_of` is its one door."""
