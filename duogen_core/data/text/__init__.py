"""Text of the data engines: its language, near duplicates, personal data, sets of words."""
