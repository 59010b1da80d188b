"""Everything of a run that only several processes or GPUs need; `utils.training.experiment` enters here."""
