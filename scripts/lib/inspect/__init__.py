"""A trained run, looked at: its test windows, what it made of one of them, and the page that shows both."""
