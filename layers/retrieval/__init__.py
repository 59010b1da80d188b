"""GRA-M's memory: what a window is remembered by, the rows, the search, and what came after."""
