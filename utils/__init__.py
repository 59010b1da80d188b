"""The ground floor: settings, records, formulas and files, with no model and no data set."""
