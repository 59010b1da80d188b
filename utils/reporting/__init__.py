"""What a run says and shows of itself: texts, tables, pictures, estimates, statistics."""
