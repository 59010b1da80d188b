"""A trained run, loaded from its checkpoint, forecasts any table with the columns it was trained on."""

from scripts.forecasting.forecaster import Forecaster as Forecaster
from scripts.forecasting.trained import Reading as Reading
