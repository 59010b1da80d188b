"""Data of all kinds, as windows and the loaders over them; no model is known here."""
